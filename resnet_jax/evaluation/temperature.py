"""Temperature scaling: probabilities that fit how often predictions are right."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from resnet_jax.evaluation.answers import Answers
from resnet_jax.runtime.errors import UserError

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
