"""Fields of settings: default, allowed values, whether a resume may differ."""

import dataclasses
import difflib
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from resnet_jax.runtime.errors import UserError

T = TypeVar("T")
Number = TypeVar("Number", bound=float)
Numbers = TypeVar("Numbers", bound=tuple[float, ...])
# Whether a resumed run may have another value, or what tells that of the new `Config`,
# whose file imports this one.
MayChange = bool | Callable[[Any], bool]
# The largest side of an image, in pixels: more is a slip, and takes gigabytes.
MAX_SIZE = 4096


def setting(
  default: T, allowed: str, check: Callable[[T], bool], may_change: MayChange = False
) -> T:
  """A field with the values it takes, in words and as a predicate.

  Args:
    default: its value where nobody sets it.
    allowed: the values it takes, in words.
    check: whether a value is one of them.
    may_change: whether a resumed run may have another value, since no number of a step
      depends on it; or a function of the new config that tells.
  """
  metadata = {"allowed": allowed, "check": check, "may_change": may_change}
  return dataclasses.field(default=default, metadata=metadata)


def changeable(default: T) -> T:
  """A field of any value, which may be another one when a run is resumed."""
  return dataclasses.field(default=default, metadata={"may_change": True})


def at_least(default: Number, low: float, may_change: MayChange = False) -> Number:
  return setting(default, f">= {low}", lambda v: v >= low, may_change)


def positive(default: Number, may_change: MayChange = False) -> Number:
  return setting(default, "> 0", lambda v: v > 0, may_change)


def between(
  default: Number, low: float, high: float, may_change: MayChange = False
) -> Number:
  return setting(default, f"in [{low}, {high}]", lambda v: low <= v <= high, may_change)


def pixels(default: int, low: int) -> int:
  """A field that is a side of images."""
  return between(default, low, MAX_SIZE)


def choice(default: str, *values: str, may_change: MayChange = False) -> str:
  allowed = "one of " + ", ".join(map(repr, values))
  return setting(default, allowed, values.__contains__, may_change)


def factory() -> str:
  """A field that names code of one's own by its import path."""
  metadata = {
    "allowed": "an import path, such as 'package.module:function'",
    "check": _is_import_path,
    "is_factory": True,
  }
  return dataclasses.field(default="", metadata=metadata)


def _is_import_path(text: str) -> bool:
  module, _, name = text.partition(":")
  parts = [*module.split("."), *name.split(".")]
  return not text or (bool(name) and all(part.isidentifier() for part in parts))


def increasing(default: Numbers) -> Numbers:
  def check(values: Numbers) -> bool:
    return all(a < b for a, b in zip((0, *values), values, strict=False))

  return setting(default, "increasing and > 0, such as (30, 60)", check)


def check_choice(field: str, value: str, allowed: Collection[str]) -> None:
  """Raises `ValueError` naming the nearest allowed values if `value` is not one."""
  if value not in allowed:
    near = difflib.get_close_matches(value, allowed, n=4) or sorted(allowed)
    raise UserError(
      f"{field}={value!r} is unknown; did you mean {', '.join(near)}?",
      setting=field.removeprefix("config."),
      value=value,
    )
