"""Checks the annotations of the package during the tests; see `conftest.py`."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# Trees of arrays, which JAX also builds from shapes, shardings and gradient dtypes.
TREES = {"TrainState", "Feed", "Chunk", "Noise"}

# An int is accepted for a float, as in mypy.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a function check its arguments and its result at every call."""
  if function.__qualname__ in {f"{tree}.__init__" for tree in TREES}:
    return function
  if "<locals>" in function.__qualname__:
    return function  # Each definition would take long to prepare for checks.
  return _checked(function)
