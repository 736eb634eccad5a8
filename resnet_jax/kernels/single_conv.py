"""One convolution without groups, and its gradients in forms that a CPU runs fast."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.kernels import choice, native
from resnet_jax.runtime.arrays import Array, Float

Gradients = tuple[jax.Array, jax.Array]  # With respect to images and kernel.

_conv = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def is_native(
  x: jax.Array, other: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> bool:
  """Whether the native kernels are chosen and support this; see `native.fits`."""
  chosen = choice.current() == "native"
  return chosen and native.fits(x, other, shape, stride, padding)


def lax_conv(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "_ _ c//{groups} f"],
  stride: int,
  padding: int,
  groups: int,
  dilation: int = 1,
) -> Float[Array, "b _ _ f"]:
  """XLA's convolution."""
  return _conv(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    rhs_dilation=(dilation, dilation),
    feature_group_count=groups,
  )


def cpu_conv(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "_ _ c f"],
  stride: int,
  padding: int,
) -> Float[Array, "b _ _ f"]:
  """A convolution by `native` if it supports this, else by XLA."""
  settings: dict[str, Any] = {"stride": stride, "padding": padding}
  reference: native.ArrayFunction = partial(lax_conv, **settings, groups=1)
  if is_native(x, kernel, kernel.shape, **settings):
    call = partial(native.conv2d, **settings)
    return native.with_derivatives(call, reference)(x, kernel)
  return reference(x, kernel)


def pointwise_gradients(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "1 1 c f"],
  dy: Float[Array, "b _ _ f"],
  stride: int,
) -> tuple[Float[Array, "b h w c"], Float[Array, "1 1 c f"]]:
  """Both gradients as matrix products.

  JAX would derive the same gradients from `conv._pointwise_conv`, but with another
  order of axes, for which XLA:CPU writes a transposed copy of `dy`.
  """
  seen = x[:, ::stride, ::stride]
  input_gradient = (dy.reshape(-1, dy.shape[-1]) @ kernel[0, 0].T).reshape(seen.shape)
  pads = [(0, 0, 0)]
  for size, out in zip(x.shape[1:3], seen.shape[1:3], strict=True):
    pads.append((0, size - (out - 1) * stride - 1, stride - 1))
  zero = jnp.zeros((), dy.dtype)
  input_gradient = lax.pad(input_gradient, zero, [*pads, (0, 0, 0)])
  # XLA's product is faster if there are fewer input than output channels, and in
  # bfloat16.
  kernel_gradient: native.ArrayFunction = _pointwise_kernel_gradient
  if kernel.shape[2] >= kernel.shape[3] and x.dtype == jnp.float32:
    kernel_gradient = partial(_kernel_gradient, reference=_pointwise_kernel_gradient)
  return input_gradient, kernel_gradient(x, dy, kernel.shape, stride, padding=0)


def _pointwise_kernel_gradient(
  x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
  del padding  # It is 0.
  rows = x[:, ::stride, ::stride].reshape(-1, x.shape[-1])
  dy_rows = dy.reshape(-1, dy.shape[-1])
  gradient = lax.dot_general(rows, dy_rows, (((0,), (0,)), ((), ())))
  return gradient.reshape(kernel_shape)


def canonical_gradients(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw c f"],
  dy: Float[Array, "b _ _ f"],
  stride: int,
  padding: int,
) -> tuple[Float[Array, "b h w c"], Float[Array, "kh kw c f"]]:
  """Both gradients, as NHWC x HWIO convolutions or by `native`."""
  settings = {"stride": stride, "padding": padding}
  reference = _canonical_kernel_gradient
  return (
    _input_gradient(x.shape, kernel, dy, **settings),
    _kernel_gradient(x, dy, kernel.shape, **settings, reference=reference),
  )


def _input_gradient(
  x_shape: tuple[int, ...],
  kernel: jax.Array,
  dy: jax.Array,
  stride: int,
  padding: int,
) -> jax.Array:
  """Convolves `dy`, dilated by the stride, with the kernel rotated by 180 degrees."""
  turned = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
  if stride == 1 and kernel.shape[0] == kernel.shape[1] > padding and dy.size:
    return cpu_conv(dy, turned, 1, kernel.shape[0] - 1 - padding)
  pads = []
  for size, taps, out in zip(x_shape[1:3], kernel.shape, dy.shape[1:3], strict=False):
    low = taps - 1 - padding
    # The far side also covers the pixels that the last stride did not reach.
    pads.append((low, size + taps - 1 - low - ((out - 1) * stride + 1)))
  return _conv(dy, turned, (1, 1), pads, lhs_dilation=(stride, stride))


def _kernel_gradient(
  x: jax.Array,
  dy: jax.Array,
  kernel_shape: tuple[int, ...],
  stride: int,
  padding: int,
  reference: native.ArrayFunction,
) -> jax.Array:
  """The kernel's gradient: by `native` if it supports this, else by `reference`."""
  settings: dict[str, Any] = {"stride": stride, "padding": padding}
  reference = partial(reference, kernel_shape=kernel_shape, **settings)
  if is_native(x, dy, kernel_shape, **settings):
    call = partial(native.kernel_gradient, shape=kernel_shape, **settings)
    return native.with_derivatives(call, reference)(x, dy)
  return reference(x, dy)


def _canonical_kernel_gradient(
  x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
  """Convolves `x` as [C, H, W, B] with `dy` as [H', W', B, F], which sums over B."""
  pads = []
  for size, taps, out in zip(x.shape[1:3], kernel_shape, dy.shape[1:3], strict=False):
    pads.append((padding, (out - 1) * stride + taps - size - padding))
  images, weights = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
  gradient = _conv(images, weights, (1, 1), pads, rhs_dilation=(stride, stride))
  return gradient.transpose(1, 2, 0, 3)
