"""Converts the tensors of PyTorch to the variables of a network, and checks them."""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from resnet_jax.models.variables import Variables
from resnet_jax.weights.tensors import (
  COUNTERS,
  Tensors,
  at,
  few,
  has_shape,
  torch_shape,
)

# Dtypes of the tensors that can be converted.
_FLOATS = ("float32", "float16", "bfloat16", "float64")
# The path in the variables of each tensor, by its name.
Names = Mapping[str, tuple[str, ...]]


def find_problems(tensors: Tensors, wanted: Variables, names: Names) -> list[str]:
  """Returns the reasons why tensors are not those of a network.

  Args:
    tensors: by name.
    wanted: the network's abstract variables.
    names: the tensors that the network needs.
  """
  unused = [
    name for name in tensors if name not in names and not name.endswith(COUNTERS)
  ]
  missing = [name for name in names if name not in tensors]
  misfits = [
    f"{name} {problem}"
    for name, keys in names.items()
    if (array := tensors.get(name)) is not None
    for problem in _misfits(name, array, at(wanted, keys).shape)
  ]
  problems = few(misfits)
  if missing:
    problems.append(f"missing: {', '.join(few(missing))}")
  if unused:
    problems.append(f"unused: {', '.join(few(unused))}")
  return problems


def to_variables(tensors: Tensors, wanted: Variables, names: Names) -> Variables:
  """Converts the tensors of a network, and takes them out of `tensors`.

  The arguments are those of `find_problems`, which found none.
  """
  variables: Variables = {collection: {} for collection in wanted}
  for name, (*parents, leaf) in names.items():
    node = variables
    for key in parents:
      node = node.setdefault(key, {})
    shape = at(wanted, names[name]).shape
    node[leaf] = jnp.asarray(_from_torch(tensors.pop(name), shape))
  return variables


def _misfits(name: str, array: np.ndarray, shape: tuple[int, ...]) -> Iterator[str]:
  """Yields the reasons why PyTorch's array cannot be converted to our `shape`."""
  if array.dtype.name not in _FLOATS:
    yield f"has dtype {array.dtype}, not one of {', '.join(_FLOATS)}"
  elif not np.isfinite(as_dtype(array, "float32")).all():
    yield "has values that are not finite in float32"
  elif name.endswith("running_var") and (array < 0).any():
    yield "has negative values"
  if not has_shape(array, shape):
    yield f"has shape {array.shape}, not {torch_shape(shape)}"


def _from_torch(array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
  """Returns [out, in, height, width] as float32 [height, width, in, out], copied."""
  assert array is not None
  array = array.reshape(torch_shape(shape))
  order = (2, 3, 1, 0) if len(shape) == 4 else tuple(reversed(range(len(shape))))
  return np.array(array.transpose(order), np.float32, order="C")


def as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
  """Returns an array in another dtype; values that are too large become infinite."""
  with np.errstate(over="ignore"):
    return array.astype(dtype, copy=False)
