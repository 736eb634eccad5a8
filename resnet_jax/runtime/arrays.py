"""Types of arrays, with the shapes and dtypes that the tests check at every call.

`Float[Array, "b h w c"]` is any float of four axes. An axis of one name has one length
in all arguments and the result of a call; `_` is any length, `*name` any number of
axes, `...` any axes, and `{name}` the value of an argument. A single name begins with
a space: linters would take it for a type.

They are jaxtyping's; without it they are plain arrays, as networks need jax, flax and
numpy only.
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
    Int,
    Int32,
    Num,
    PRNGKeyArray,
    Shaped,
    UInt8,
  )
except ModuleNotFoundError:
  if not TYPE_CHECKING:

    class _Plain:
      """Stands in for each of jaxtyping's: the type of the array alone."""

      def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
        return array_and_shape[0]

    Bool = Float = Float32 = Int = Int32 = Num = Shaped = UInt8 = _Plain
    PRNGKeyArray = Array

# Of the device or of the host.
AnyArray = Array | np.ndarray

__all__ = [
  "AnyArray",
  "Array",
  "Bool",
  "Float",
  "Float32",
  "Int",
  "Int32",
  "Num",
  "PRNGKeyArray",
  "Shaped",
  "UInt8",
  "prepend_axes",
]


def prepend_axes(values: Array, x: Array) -> Array:
  """Returns values, such as one for each channel, with as many axes as `x` has."""
  return jnp.expand_dims(values, tuple(range(x.ndim - values.ndim)))
