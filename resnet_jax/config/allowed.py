"""Fields of settings: default, allowed values, whether a resume may differ."""

import dataclasses


def setting(default, allowed: str, check, may_change=False):
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


def changeable(default):
  """A field of any value, which may be another one when a run is resumed."""
  return dataclasses.field(default=default, metadata={"may_change": True})


def at_least(default, low, may_change=False):
  return setting(default, f">= {low}", lambda v: v >= low, may_change)


def positive(default, may_change=False):
  return setting(default, "> 0", lambda v: v > 0, may_change)


def choice(default, *values, may_change=False):
  allowed = "one of " + ", ".join(map(repr, values))
  return setting(default, allowed, values.__contains__, may_change)


def factory():
  """A field that names code of one's own by its import path."""
  return setting(
    "", "an import path, such as 'package.module:function'", _is_import_path
  )


def _is_import_path(text: str) -> bool:
  module, _, name = text.partition(":")
  parts = [*module.split("."), *name.split(".")]
  return not text or (bool(name) and all(part.isidentifier() for part in parts))


def increasing(default):
  def check(values):
    return all(a < b for a, b in zip((0, *values), values, strict=False))

  return setting(default, "increasing and > 0, such as (30, 60)", check)
