"""The temperature of a run's probabilities, stored in `temperature.json`."""

import json
import math

from etils import epath

from resnet_jax.runs.run_dir import write_file
from resnet_jax.runtime.errors import NotFoundError, UserError

_FILE = "temperature.json"


def write_temperature(
  workdir: str, step: int, temperature: float, split: str, count: int
) -> None:
  """Stores a temperature, in place of an older one.

  Args:
    workdir: the run directory.
    step: completed steps of the state that it was fitted for.
    temperature: T > 0 of softmax(logits / T).
    split: the images on which it was fitted.
    count: number of these images.
  """
  values = {"temperature": temperature, "step": step, "split": split, "count": count}
  write_file(epath.Path(workdir) / _FILE, json.dumps(values, indent=2) + "\n")


def read_temperature(workdir: str, step: int) -> float:
  """Returns the temperature of the state of a run.

  Raises:
    NotFoundError: the run has none, or one of another state.
    UserError: the file is damaged.
  """
  path = epath.Path(workdir) / _FILE
  advice = f"resnet-jax evaluate --workdir {workdir} --fit-temperature --split SPLIT"
  if not path.exists():
    raise NotFoundError(f"the run {workdir} has no temperature; fit one: {advice}")
  try:
    values = json.loads(path.read_text())
    found, of = float(values["temperature"]), int(values["step"])
    if not 0 < found < math.inf:
      raise ValueError(f"temperature is {found}")
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
