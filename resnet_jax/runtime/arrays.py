"""Types of arrays, with the shapes and dtypes that the tests check at every call.

`Float[Array, "b h w c"]` is a float array with four axes. Axes of the same name have
the same length in all arguments and the result of a call. `_` is any length, `*name`
any number of axes, `...` any axes, and `{name}` the value of an argument. If there is
only one name, it begins with a space, because linters would mistake it for a type.

The types are those of jaxtyping. If it is not installed, they are plain arrays, because
networks need only jax, flax and numpy.
"""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array

try:
  from jaxtyping import (
    Bool,
    Float,
    Float32,
    Float64,
    Int,
    Int32,
    Num,
    PRNGKeyArray,
    Shaped,
    UInt,
    UInt8,
  )
except ModuleNotFoundError:
  if not TYPE_CHECKING:

    class _Plain:
      """Replaces each type of jaxtyping by the type of the array alone."""

      def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
        return array_and_shape[0]

    Bool = Float = Float32 = Float64 = Int = Int32 = Num = Shaped = _Plain
    UInt = UInt8 = _Plain
    PRNGKeyArray = Array

# An array on the device or on the host.
AnyArray = Array | np.ndarray

__all__ = [
  "AnyArray",
  "Array",
  "Bool",
  "Float",
  "Float32",
  "Float64",
  "Int",
  "Int32",
  "Num",
  "PRNGKeyArray",
  "Shaped",
  "UInt",
  "UInt8",
  "prepend_axes",
]


def prepend_axes(values: Array, x: Array) -> Array:
  """Returns values, such as one per channel, with as many axes as `x`."""
  return jnp.expand_dims(values, tuple(range(x.ndim - values.ndim)))
