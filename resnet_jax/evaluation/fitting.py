"""Fits the temperature or the thresholds of a run, and stores them with it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from resnet_jax.evaluation.answers import collect
from resnet_jax.evaluation.multi_label import fit_thresholds
from resnet_jax.evaluation.report import score
from resnet_jax.evaluation.temperature import fit_temperature
from resnet_jax.runs.fitted_values import write_fitted
from resnet_jax.training.evaluator import Prepared


class _Fit(NamedTuple):
  """How a value is fitted, and the scores that it changes."""

  function: Callable[[Any], Any]
  scores: tuple[str, ...]


_FITS = {
  "temperature": _Fit(fit_temperature, ("loss", "calibration_error")),
  "thresholds": _Fit(fit_thresholds, ("macro_f1", "micro_f1", "sample_f1")),
}


def fit_and_store(
  prepared: Prepared, workdir: str, name: str, split: str, engine: str = "jax"
) -> dict[str, float]:
  """Fits a value on images, and stores it with the run.

  Args:
    prepared: the run and the images.
    workdir: the run directory.
    name: "temperature" or "thresholds".
    split: name of the images.
    engine: see `collect`.

  Returns:
    The temperature, "count", and scores with the value and, with the suffix "_before",
    without it.
  """
  answers, fit = collect(prepared, engine=engine), _FITS[name]
  value, count = fit.function(answers), len(answers.labels)
  assert prepared.step is not None
  write_fitted(workdir, prepared.step, name, value, split, count)
  after, before = score(answers.calibrated(**{name: value})), score(answers)
  found = {"temperature": value} if name == "temperature" else {}
  found["count"] = count
  for key in fit.scores:
    found |= {key: after[key], f"{key}_before": before[key]}
  return found
