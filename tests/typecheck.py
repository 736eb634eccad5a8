"""What checks the annotations of the package in the tests; see `conftest.py`."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# Trees of arrays: JAX makes them of shapes, shardings and gradients' dtypes too.
TREES = {"TrainState", "Feed", "Chunk", "Noise"}

# An int may stand where a float is wanted, as for mypy.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
  """Has a function check its arguments and its result at every call."""
  if function.__qualname__ in {f"{tree}.__init__" for tree in TREES}:
    return function
  if "<locals>" in function.__qualname__:
    return function  # It would be prepared anew, at length, whenever it is defined.
  return _checked(function)
