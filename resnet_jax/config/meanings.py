"""Meanings of the settings for `--help`, from the docstrings of the schema."""

import dataclasses
import inspect
import re
import textwrap
from typing import TYPE_CHECKING

from resnet_jax.config import fields
from resnet_jax.config.schema import Config
from resnet_jax.runtime.terminal import printable

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

_WIDTH = 88
_ENTRY = re.compile(r"^  (\w+(?:, \w+)*): (.+?)(?=^  \w|\Z)", re.M | re.S)


def describe_settings(config: Config) -> str:
  """Returns a text of all settings by group: meaning, allowed values, default.

  Args:
    config: the config whose values are shown as defaults.
  """
  groups: list[tuple[str, DataclassInstance]] = [("", config)]
  for field in dataclasses.fields(config):
    group = getattr(config, field.name)
    if dataclasses.is_dataclass(group) and not isinstance(group, type):
      groups.append((f"{field.name}.", group))
  return "\n".join(_describe_group(*group) for group in groups)


def _describe_group(prefix: str, group: "DataclassInstance") -> str:
  text = inspect.getdoc(type(group)) or ""
  meanings = _meanings(text)
  lines = [text.split("\n")[0].rstrip(".") + ":"]
  for path, field, value in fields.walk(group, prefix):
    if path.removeprefix(prefix) not in meanings:  # Its own group describes it.
      continue
    meaning = meanings[field.name]
    default = printable(_show(value))
    lines.append(f"  --config.{path} ({_kind(path, field)}; default: {default})")
    lines += textwrap.wrap(
      meaning[0].upper() + meaning[1:],
      _WIDTH,
      initial_indent=" " * 6,
      subsequent_indent=" " * 6,
    )
  return "\n".join(lines) + "\n"


def _kind(path: str, field: dataclasses.Field[object]) -> str:
  """Returns the allowed values of a setting, such as "a whole number > 0"."""
  allowed = str(field.metadata.get("allowed", ""))
  if allowed.startswith((">", "in ")):
    return f"{fields.type_name(path).partition(',')[0]} {allowed}"
  return allowed or fields.type_name(path)


def _meanings(docstring: str) -> dict[str, str]:
  """Returns {field: meaning} from the "Attributes:" of a docstring."""
  _, _, attributes = docstring.partition("Attributes:\n")
  return {
    name: " ".join(text.split())
    for names, text in _ENTRY.findall(attributes)
    for name in names.split(", ")
  }


def _show(value: object) -> str:
  """Returns a value as it is written on the command line."""
  if isinstance(value, dict):
    return ",".join(f"{name}={factor:g}" for name, factor in value.items()) or "none"
  if isinstance(value, tuple):
    return ",".join(map(str, value)) or "none"
  return str(value) or "''"
