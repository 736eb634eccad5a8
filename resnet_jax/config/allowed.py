"""Fields of settings: default, allowed values, and whether a resume may change them."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from resnet_jax.runtime.errors import UserError

T = TypeVar("T")
Number = TypeVar("Number", bound=float)
Numbers = TypeVar("Numbers", bound=tuple[float, ...])
# Whether a resumed run may have another value: a bool, or a function that computes it
# from the new `Config`. (The file of `Config` imports this one, hence `Any`.)
MayChange = bool | Callable[[Any], bool]
# The largest side of an image, in pixels. A larger one is a mistake, and would take
# gigabytes.
MAX_SIZE = 4096
_MOST_SHOWN = 8  # Number of names in a message.


def setting(
  default: T,
  allowed: str,
  check: Callable[[T], bool],
  may_change: MayChange = False,
  choices: Sequence[T] = (),
) -> T:
  """Returns a dataclass field with its allowed values.

  Args:
    default: its default value.
    allowed: the allowed values, in words.
    check: whether a value is allowed.
    may_change: whether a resumed run may have another value, because the result of a
      step does not depend on it. A function computes this from the new config.
    choices: all allowed values, if they are few.
  """
  metadata = {
    "allowed": allowed,
    "check": check,
    "may_change": may_change,
    "choices": choices,
  }
  return dataclasses.field(default=default, metadata=metadata)


def changeable(default: T) -> T:
  """Returns a field of any value; a resumed run may have another value."""
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
  """Returns a field for a side length of images, in pixels."""
  return between(default, low, MAX_SIZE)


def choice(default: str, *values: str, may_change: MayChange = False) -> str:
  allowed = "one of " + ", ".join(map(repr, values))
  return setting(default, allowed, values.__contains__, may_change, values)


def factory() -> str:
  """Returns a field for the import path of the user's own code."""
  metadata = {
    "allowed": "an import path, such as 'package.module:function'",
    "check": _is_import_path,
    "is_factory": True,
  }
  return dataclasses.field(default="", metadata=metadata)


def factories(*names: str) -> tuple[str, ...]:
  """Returns a field of built-in parts and import paths of the user's own code.

  A resumed run may have others.

  Args:
    *names: names of the built-in parts.
  """
  listed = ", ".join(map(repr, names))
  metadata = {
    "allowed": (
      f"different names of {listed}, or import paths, such as 'package.module:function'"
    ),
    "check": lambda values: (
      len(set(values)) == len(values)
      and all(v in names or (v and _is_import_path(v)) for v in values)
    ),
    "may_change": True,
    "is_factory": True,
  }
  return dataclasses.field(default=(), metadata=metadata)


def _is_import_path(text: str) -> bool:
  module, _, name = text.partition(":")
  parts = [*module.split("."), *name.split(".")]
  return not text or (bool(name) and all(part.isidentifier() for part in parts))


def increasing(default: Numbers, example: str = "(30, 60)") -> Numbers:
  def check(values: Numbers) -> bool:
    return all(a < b for a, b in zip((0, *values), values, strict=False))

  return setting(default, f"increasing and > 0, such as {example}", check)


def check_choice(
  field: str, value: str, allowed: Collection[str], listing: str = ""
) -> None:
  """Raises `ValueError` with the nearest allowed values if `value` is not allowed.

  Args:
    field: name of the setting or flag in the message.
    value: its value.
    allowed: the allowed values.
    listing: where to find all allowed values, if they are many.
  """
  if value not in allowed:
    raise UserError(
      f"{field}={value!r} is unknown; {suggest(value, allowed, listing)}",
      setting=field.removeprefix("config.") if field.startswith("config.") else "",
      value=value,
    )


def suggest(word: str, known: Collection[str], listing: str = "") -> str:
  """Returns part of a sentence that suggests known names for a mistyped one.

  It has the nearest three names. If none is near, it has the first names and how many
  more there are. `listing` says where to find all names.
  """
  if near := nearest(word, known):
    return f"did you mean {', '.join(near)}?"
  shown = list(known)[:_MOST_SHOWN]
  text = f"choose from {', '.join(shown)}"
  if more := len(known) - len(shown):
    text += f" and {more} more"
  return f"{text}: {listing}" if more and listing else text


def nearest(word: str, known: Iterable[str]) -> list[str]:
  """Returns the names nearest to a word: at most three, possibly none."""
  word = word.lower()
  names = {name.lower(): name for name in known}

  def order(name: str) -> tuple[float, int, str]:
    # Of equally close names, those that begin alike come first.
    ratio = difflib.SequenceMatcher(None, name, word).ratio()
    alike = [a == b for a, b in zip(name, word, strict=False)]
    return -ratio, -[*alike, False].index(False), name

  close = difflib.get_close_matches(word, names, n=max(1, len(names)))
  near = sorted(close, key=order)[:3]
  if len(word) > 2:  # Shorter words are in too many names.
    near += [name for name in names if word in name and name not in near]
  return [names[name] for name in near[:3]]
