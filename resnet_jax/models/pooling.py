"""Pooling: how feature maps become smaller without a convolution.

`average_pool` and `blur_pool` are called as `pool(x, stride, distance)`. `distance` is
for networks in which dilation replaces the stride: the stride is then 1, and the pool
combines pixels at this distance from each other.

Shapes: B batch, H height, W width, C channels.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_jax.models.operations import operation
from resnet_jax.runtime.arrays import Array, Float


@operation
def max_pool_3x3(
  x: Float[Array, "b h w c"], stride: int = 2, border: float = -jnp.inf
) -> Float[Array, "b _ _ c"]:
  """Max-pools 3x3 windows.

  On a CPU, this is the maximum of nine shifted images, so the gradient is elementwise.
  The gradient of `nn.max_pool` is a select-and-scatter, which is slow there. On other
  devices, `nn.max_pool` moves fewer bytes. Where several pixels of a window have the
  maximum, the former divides the gradient between them, the latter gives it to one.

  Args:
    x: images or feature maps.
    stride: step along both spatial axes.
    border: value of the pixels just outside of the images.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), C]; same dtype as `x`.
  """
  y: Array = jax.lax.platform_dependent(
    x,
    cpu=partial(_shifted_maxima, stride=stride, border=border),
    default=partial(_max_of_windows, stride=stride, border=border),
  )
  return y


def _shifted_maxima(x: Array, stride: int, border: float) -> Array:
  height, width = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=border)
  rows = [x[:, i : i + height : stride] for i in range(3)]
  x = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
  columns = [x[:, :, i : i + width : stride] for i in range(3)]
  return jnp.maximum(jnp.maximum(columns[0], columns[1]), columns[2])


def _max_of_windows(x: Array, stride: int, border: float) -> Array:
  padding = 1
  if border != -jnp.inf:  # The value with which `nn.max_pool` pads.
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x, padding = jnp.pad(x, sides, constant_values=border), 0
  pooled: Array = nn.max_pool(x, (3, 3), (stride, stride), [(padding, padding)] * 2)
  return pooled


@operation
def average_pool(
  x: Float[Array, "b h w c"], stride: int, distance: int = 1
) -> Float[Array, "b _ _ c"]:
  """Averages windows of `stride` x `stride` pixels, or of 2x2 if the stride is 1.

  Pixels outside of the image do not count.

  Args:
    x: feature maps.
    stride: step along both spatial axes.
    distance: distance between the averaged pixels if the stride is 1; else unused.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), C]; same dtype as `x`.
  """
  if stride > 1:
    pooled: jax.Array = nn.avg_pool(
      x,
      window_shape=(stride, stride),
      strides=(stride, stride),
      padding=[(0, -size % stride) for size in x.shape[1:3]],
      count_include_pad=False,
    )
    return pooled
  _, height, width, _ = x.shape
  padded = jnp.pad(x, ((0, 0), (0, distance), (0, distance), (0, 0)))
  shifts = [(down, right) for down in (0, distance) for right in (0, distance)]
  total = sum(padded[:, i : i + height, j : j + width] for i, j in shifts)
  rows, columns = (1 + (jnp.arange(n) < n - distance) for n in (height, width))
  counts = rows[None, :, None, None] * columns[None, None, :, None]
  return total / counts.astype(x.dtype)


@operation
def blur_pool(
  x: Float[Array, "b h w c"], stride: int, distance: int = 1
) -> Float[Array, "b _ _ c"]:
  """Blurs with the weights 1, 2, 1 along both axes, then keeps each `stride`-th pixel.

  At the borders, the image is mirrored (Zhang 2019, "Making convolutional networks
  shift-invariant again", section 3.2 and its code).

  Args:
    x: feature maps.
    stride: step along both spatial axes.
    distance: distance between the pixels that are weighted, for a stride of 1.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), C]; same dtype as `x`.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    center = np.arange(0, size, stride)
    # A pixel without a neighbour on one side uses its other neighbour twice.
    before, after = center - distance, center + distance
    before, after = (
      np.where(before < 0, after, before),
      np.where(after >= size, before, after),
    )
    neighbours = [np.clip(side, 0, size - 1) for side in (before, after)]
    first, second = (jnp.take(x, side, axis) for side in neighbours)
    x = (first + 2 * jnp.take(x, center, axis) + second) / 4
  return x
