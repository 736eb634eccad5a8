"""Temperature scaling: probabilities that fit how often predictions are right."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from resnet_jax.evaluation.answers import Answers, collect
from resnet_jax.evaluation.scores import score
from resnet_jax.runs.calibration import write_fitted
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.evaluator import Prepared

RANGE = 0.01, 100.0


def fit_temperature(answers: Answers) -> float:
  """Returns the T > 0 that minimises the log loss of softmax(logits / T).

  Guo et al. 2017, section 4.2. The images must not be those that the network was
  trained on, nor those on which it is evaluated.

  Raises:
    UserError: all predictions are right, so that no T is the best.
  """
  if not (answers.ranks > 0).any():
    raise UserError(
      f"all {len(answers.labels)} predictions are right, so that no temperature fits "
      "best; fit it on more images, or on harder ones"
    )
  logits = answers.logits.astype(np.float64)
  own = np.take_along_axis(logits, answers.labels[:, None], axis=1)[:, 0]

  def loss(log_temperature: float) -> float:
    scale = np.exp(-log_temperature)
    return float((logsumexp(logits * scale, axis=1) - own * scale).mean())

  # The loss is convex in 1 / T (a log-sum-exp), so that there is one minimum.
  found = minimize_scalar(
    loss, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-6}
  )
  return float(np.exp(found.x))


def fit_and_store(prepared: Prepared, workdir: str, split: str) -> dict[str, float]:
  """Fits the temperature of a run on images, and stores it with the run.

  Args:
    prepared: the run and the images.
    workdir: the run directory.
    split: name of the images.

  Returns:
    "temperature", "count", and "loss" and "calibration_error" with it and, as
    "loss_before" and "calibration_error_before", without it.
  """
  answers = collect(prepared)
  assert isinstance(answers, Answers)
  temperature = fit_temperature(answers)
  after = score(answers.calibrated(temperature=temperature))
  before = score(answers)
  assert prepared.step is not None
  count = len(answers.labels)
  write_fitted(workdir, prepared.step, "temperature", temperature, split, count)
  found = {"temperature": temperature, "count": count}
  for name in ("loss", "calibration_error"):
    found |= {name: after[name], f"{name}_before": before[name]}
  return found
