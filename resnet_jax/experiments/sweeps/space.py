"""The search space of a sweep, and the images on which its trials are evaluated."""

import copy
import itertools
import json
import math
import runpy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resnet_jax.config.fields import check_field_name, set_value
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.resolved_config import check_settings

if TYPE_CHECKING:
  from optuna.distributions import BaseDistribution

# Path of a setting, such as "optim.learning_rate" -> its distribution.
Space = Mapping[str, "BaseDistribution"]


def load_space(path: str) -> Space:
  """Returns the result of `get_space` in a Python file.

  Args:
    path: path of the file. Its `get_space()` maps paths of settings, such as
      "optim.learning_rate", to `optuna.distributions`.

  Raises:
    ValueError: the file does not exist or has no such function, or the function returns
      something else.
  """
  from optuna.distributions import BaseDistribution

  try:
    space = runpy.run_path(path)["get_space"]()
  except KeyError as error:
    raise UserError(f"--space={path} has no get_space()") from error
  except Exception as error:  # A user's file may raise anything.
    raise UserError(f"--space={path}: {type(error).__name__}: {error}") from error
  is_space = isinstance(space, dict) and space
  if not is_space or not all(isinstance(d, BaseDistribution) for d in space.values()):
    raise UserError(
      f"--space={path}: get_space() must return a dict from settings to "
      f"optuna.distributions, not {space!r}"
    )
  checked: Space = space
  return checked


def check_space(space: Space, config: Config) -> None:
  """Checks that the settings allow both ends of each distribution, or all its choices.

  Raises:
    ValueError: a setting is unknown or is set by the sweep itself, or a value is not
      allowed.
  """
  for path, distribution in space.items():
    check_field_name(path)
    if path in ("data.train_split", "data.eval_split"):
      raise UserError(f"--space: config.{path} is set by the sweep itself; remove it")
    for value in extremes(distribution):
      try:
        check_settings(with_values(config, {path: value}))
      except ValueError as error:
        raise UserError(f"space of config.{path}: {error}") from error


def extremes(distribution: "BaseDistribution") -> list[Any]:
  """Returns all choices of a distribution, or its two ends."""
  choices = getattr(distribution, "choices", None)
  if choices is not None:
    return list(choices)
  return [distribution.low, distribution.high]  # type: ignore[attr-defined]


def as_trial(space: Space, values: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns values of settings as a trial stores them; None if `space` lacks one."""
  trial = {}
  for path, distribution in space.items():
    known, value = extremes(distribution), values[path]
    if hasattr(distribution, "choices"):
      found = [choice for choice in known if _decode(choice) == value]
    else:
      found = [value] if known[0] <= value <= known[1] else []
    if not found:
      return None
    trial[path] = found[0]
  return trial


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
  """Returns a copy of settings with the values of a trial."""
  changed = copy.deepcopy(config)
  for path, value in values.items():
    set_value(changed, path, _decode(value))
  return changed


def _decode(value: Any) -> Any:
  """Turns "(30, 60)" into a tuple. Optuna cannot store tuples, so trials have text."""
  if isinstance(value, str) and value.startswith("("):
    inside = value.strip("() ").rstrip(",")
    return tuple(json.loads(f"[{inside}]"))
  return value


def grid(space: Space) -> list[dict[str, Any]]:
  """Returns all combinations of values in a space.

  Raises:
    ValueError: a distribution has neither choices nor a step.
  """
  values = {}
  for path, distribution in space.items():
    choices = getattr(distribution, "choices", None)
    step = getattr(distribution, "step", None)
    if getattr(distribution, "log", False):  # Its steps are not equally wide.
      step = None
    if choices is None and step is None:
      raise UserError(
        f"space of config.{path}: --sampler=grid needs choices or a step, not "
        f"{distribution}"
      )
    if choices is None and step is not None:
      low, high = extremes(distribution)
      count = math.floor((high - low) / step + 1e-9) + 1
      choices = [low + i * step for i in range(count)]
    values[path] = choices or []
  return [
    dict(zip(values, combination, strict=True))
    for combination in itertools.product(*values.values())
  ]


def hold_out(config: Config, share: float) -> Config:
  """Returns settings that train on a part of the training split, and evaluate the rest.

  Args:
    config: settings with a data set that takes TFDS's syntax for splits.
    share: fraction of the training images kept for evaluation; rounded to 1 %.

  Raises:
    ValueError: one part would be empty, the images are a folder, or the training split
      is already cut.
  """
  config = copy.deepcopy(config)
  split = config.data.train_split
  if config.data.name == "folder" or "[" in split:
    raise UserError(
      f"--val-share={share:g} cannot cut config.data.train_split={split!r} of "
      f"{config.data.name!r}; set --val-share=0 to judge by config.data.eval_split"
    )
  if not 0.01 <= share <= 0.99:
    raise UserError(f"--val-share={share:g} must be in [0.01, 0.99], or 0")
  percent = round(100 * (1 - share))
  config.data.train_split = f"{split}[:{percent}%]"
  config.data.eval_split = f"{split}[{percent}%:]"
  return config
