"""The settings one by one: their paths, types and values."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from resnet_jax.config.allowed import MayChange
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError

if TYPE_CHECKING:
  from _typeshed import DataclassInstance


def walk(
  config: "DataclassInstance", prefix: str = ""
) -> Iterator[tuple[str, dataclasses.Field[Any], object]]:
  """Yields (path, field, value) of every setting, in order."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(field.type):
      yield from walk(value, f"{prefix}{field.name}.")
    else:
      yield prefix + field.name, field, value


def set_value(config: Config, path: str, value: object) -> None:
  """Changes a setting in place.

  Args:
    config: what to change.
    path: such as "optim.learning_rate".
    value: not checked here.

  Raises:
    ValueError: there is no such setting.
  """
  check_field_name(path)
  *groups, name = path.split(".")
  group: object = config
  for part in groups:
    group = getattr(group, part)
  setattr(group, name, value)


def may_change(field: dataclasses.Field[Any], config: Config) -> bool:
  """Whether a run that is resumed with `config` may have another value of a field."""
  rule: MayChange = field.metadata.get("may_change", False)
  return rule if isinstance(rule, bool) else rule(config)


def flatten(config: Config) -> dict[str, object]:
  """Returns {"optim.learning_rate": 0.1, ...} of all settings."""
  return {path: value for path, _, value in walk(config)}


def check_field_name(path: str) -> None:
  """Raises `ValueError` with the nearest names if `path` is no setting's name."""
  known = list(flatten(Config()))
  if path not in known:
    near = near_names(path)
    if not near:
      raise UserError(
        f"config.{path} is no setting; `resnet-jax train --help` lists all settings"
      )
    names = ", ".join(f"config.{name}" for name in near)
    raise UserError(f"config.{path} is no setting; did you mean {names}?")


# Short names that other programs have.
_SHORT = {"lr": "learning_rate", "wd": "weight_decay", "epochs": "num_epochs"}


def near_names(path: str) -> list[str]:
  """Returns the settings that someone may have meant by a name that is none."""
  known = list(flatten(Config()))
  last = path.rsplit(".", 1)[-1].replace("-", "_")
  last = _SHORT.get(last, last)
  near = difflib.get_close_matches(path, known, n=2)
  near += [name for name in known if name.rsplit(".", 1)[-1] == last]
  return list(dict.fromkeys(near))


def type_name(path: str) -> str:
  """Returns the type of a setting in a user's words, such as "a whole number"."""
  words: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    int | str: "a word or a whole number",
    tuple[str, ...]: "names with commas between, such as stem,stage1",
    tuple[int, ...]: "a tuple of whole numbers, such as (30, 60)",
    tuple[float, ...]: "a tuple of numbers, such as (0.5, 0.5)",
    Mapping[str, float]: "names and numbers, such as head=10,stem=0.1",
  }
  types = {field_path: field.type for field_path, field, _ in walk(Config())}
  return words[types[path]]
