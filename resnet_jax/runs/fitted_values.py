"""What an evaluation fitted for a run: a temperature, or thresholds of the classes.

Each is in a JSON file of the run directory, for the state of one step.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from resnet_jax.runs.run_dir import write_file
from resnet_jax.runtime.buckets import storage_path
from resnet_jax.runtime.errors import NotFoundError, UserError


def write_fitted(
  workdir: str,
  step: int,
  name: str,
  value: float | Sequence[float],
  split: str,
  count: int,
) -> None:
  """Stores a fitted value, in place of an older one.

  Args:
    workdir: the run directory.
    step: completed steps of the state that it was fitted for.
    name: "temperature" or "thresholds".
    value: T > 0 of softmax(logits / T), or the threshold of each class, in [0, 1].
    split: the images on which it was fitted.
    count: number of these images.
  """
  values = {name: value, "step": step, "split": split, "count": count}
  path = storage_path(workdir) / f"{name}.json"
  write_file(path, json.dumps(values, indent=2) + "\n")


def read_fitted(workdir: str, step: int, name: str) -> Any:
  """Returns the value that `write_fitted` stored for the state of a run.

  Raises:
    NotFoundError: the run has none, or one of another state.
    UserError: the file is damaged.
  """
  path = storage_path(workdir) / f"{name}.json"
  advice = f"resnet-jax evaluate --workdir {workdir} --fit-{name} --split SPLIT"
  if not path.exists():
    one = "one" if name == "temperature" else "them"
    raise NotFoundError(f"the run {workdir} has no {name}; fit {one}: {advice}")
  try:
    values = json.loads(path.read_text())
    found, of = check_fitted(values[name], path), int(values["step"])
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise UserError(f"{path} is damaged: {error!r:.100}; fit it again: {advice}") from (
      error
    )
  if of != step:
    raise NotFoundError(
      f"{path} is for step {of}, not for step {step}; fit it again: {advice} "
      f"--checkpoint {step}"
    )
  return found


def check_fitted(value: Any, where: object) -> float | tuple[float, ...]:
  """Returns a temperature, or the thresholds of a list.

  Raises:
    UserError: a temperature is not above 0, or a threshold is not in [0, 1].
  """
  is_list = isinstance(value, list | tuple)
  numbers = tuple(value) if is_list else (value,)
  for x in numbers:
    is_number = isinstance(x, int | float) and math.isfinite(x)
    if not is_number or not (0 <= x <= 1 if is_list else x > 0):
      raise UserError(f"a temperature or threshold of {where} is damaged: {x!r:.40}")
  return numbers if is_list else float(value)
