"""Reads and writes a run's settings, and checks whether a resume may change them."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from resnet_jax.config.fields import check_field_name, flatten, may_change, walk
from resnet_jax.config.schema import Config
from resnet_jax.config.validation import validate
from resnet_jax.config.values import parse_factors, parse_names, parse_scope
from resnet_jax.runtime.errors import UserError

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

Group = TypeVar("Group", bound="DataclassInstance")

# Settings that were text in earlier versions; the files of older runs hold that text.
_FROM_TEXT: dict[str, Callable[[str], object]] = {
  "freeze": parse_names,
  "optim.learning_rate_multipliers": parse_factors,
  "bn_scope": parse_scope,
}


def to_json(config: Config) -> str:
  """Returns the settings as JSON text, one per line."""
  return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
  """Rebuilds the settings that `to_json` wrote.

  Raises:
    ValueError: the text is not JSON, or has an unknown name or a value that `validate`
      refuses.
  """

  def build(cls: type[Group], values: object, prefix: str = "") -> Group:
    if not isinstance(values, dict):
      raise UserError(f"config.{prefix[:-1]}={values!r} must be a group of settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    made = {}
    for name, value in values.items():
      if name not in fields:
        check_field_name(prefix + name)
      kind = fields[name].type
      if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        value = build(kind, value, f"{prefix}{name}.")
      elif isinstance(value, str) and prefix + name in _FROM_TEXT:
        value = _FROM_TEXT[prefix + name](value)
      made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)

  config = build(Config, json.loads(text))
  validate(config)
  return config


def to_source(config: Config, doc: str) -> str:
  """Returns the text of a config file with all settings that are not defaults.

  Args:
    config: the settings.
    doc: the file's docstring; any text.
  """
  names = []

  def build(group: "DataclassInstance", indent: str) -> str:
    inner, lines, defaults = indent + "  ", [], type(group)()
    for field in dataclasses.fields(group):
      value = getattr(group, field.name)
      if dataclasses.is_dataclass(field.type):
        if text := build(value, inner):
          lines.append(f"{inner}{field.name}={text},\n")
      elif value != getattr(defaults, field.name):
        lines.append(f"{inner}{field.name}={value!r},\n")
    if not lines:
      return ""
    names.append(type(group).__name__)
    return f"{names[-1]}(\n{''.join(lines)}{indent})"

  made = build(config, "  ") or "Config()"
  imports = "".join(f"  {name},\n" for name in sorted({"Config", *names}))
  quoted = f'"""{doc}"""'
  if re.search(r'["\\]', doc) or not all(map(str.isprintable, doc.split("\n"))):
    quoted = repr(doc)
  return (
    f"{quoted}\n\nfrom resnet_jax.config import (\n{imports})\n\n\n"
    f"def get_config() -> Config:\n  return {made}\n"
  )


def check_resumable(old: Config, new: Config) -> None:
  """Refuses settings with which a resumed run would differ from an uninterrupted one.

  Raises:
    ValueError: a setting changed; the message has both values.
  """
  free = {path for path, field, _ in walk(new) if may_change(field, new)}
  # Older runs stored 0 for these two settings; newer runs store the actual sizes.
  if not (old.data.eval_resize or old.data.eval_crop):
    free |= {"data.eval_resize", "data.eval_crop"}
  before, after = flatten(old), flatten(new)
  changed = [
    f"config.{path} was {before[path]!r} and is now {after[path]!r}"
    for path in before
    if path not in free and before[path] != after[path]
  ]
  if changed:
    raise UserError(
      "cannot resume: " + "; ".join(changed) + "; set it back or use a new --workdir"
    )
