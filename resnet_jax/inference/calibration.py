"""Reads the temperature or the thresholds that were fitted for a network."""

from typing import Any

from resnet_jax import weights
from resnet_jax.runs.fitted_values import check_fitted, read_fitted
from resnet_jax.runtime.errors import NotFoundError, UserError


def read_calibration(path: str, step: int | None, labels: str) -> dict[str, Any]:
  """Returns "temperature" or "thresholds", which were fitted for a network.

  Args:
    path: a run directory, or weights.
    step: the completed steps of the run; None for weights.
    labels: what the network predicts, see `DataConfig.labels`.

  Raises:
    NotFoundError: they were not fitted.
    UserError: they are damaged, or the network predicts no classes of images.
  """
  if labels not in ("class", "classes"):
    raise UserError(
      f"{path} has config.data.labels={labels!r}, for which there is no calibration"
    )
  name = "temperature" if labels == "class" else "thresholds"
  if step is None:
    found = weights.read_training(path).get(name)
  else:
    found = read_fitted(path, step, name)
  if found is None:
    raise NotFoundError(
      f"{path} has no {name}; fit {'one' if labels == 'class' else 'them'} for its run "
      f"by `resnet-jax evaluate --fit-{name}`, and convert the run again"
    )
  return {name: check_fitted(found, path)}
