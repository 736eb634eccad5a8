"""Describes how a run trained its weights."""

from typing import Any

from resnet_jax.config.factories import part_name
from resnet_jax.config.fields import flatten, may_change, walk
from resnet_jax.config.schema import Config

# Settings that may be paths on this machine.
_PATHS = ("init_from", "distill.teacher")


def describe_training(
  config: Config, step: int, evaluation: dict[str, float]
) -> dict[str, Any]:
  """Returns how a run trained its weights, for `weights.read_training`.

  Everything is from the run's files. "settings" are those that differ from the
  defaults.
  """
  defaults = flatten(Config())
  settings = {
    path: value
    for path, field, value in walk(config)
    # A file of weights does not tell paths on this machine. It also leaves out settings
    # that may change when a run is resumed, such as how often to log.
    if value != defaults[path] and path not in _PATHS and not may_change(field, config)
  }
  return {
    "data": part_name(config.data.factory, config.data.name),
    "seed": config.seed,
    "steps": step,
    "evaluation": {k: v for k, v in evaluation.items() if k != "images_per_s"},
    "settings": settings,
  }
