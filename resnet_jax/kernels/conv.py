"""2-D convolution with the chosen kernels.

"plain" is `lax.conv`. The others have a gradient that stays fast inside `lax.scan` on a
CPU. XLA:CPU rewrites convolutions with unusual dimension orders only outside loops.
The gradients that JAX derives have such orders, so inside a loop they run on a naive
kernel that is about 20 times slower (jax-ml/jax#12868). Here both gradients are
ordinary NHWC x HWIO convolutions. They are fast in every loop and give the same bits as
the derived ones. On a single CPU device, `native` computes them even faster. GPUs and
TPUs keep the gradient of `lax.conv`.

XLA:CPU has no fast kernel for grouped convolutions. There they run as a few dense ones
of about `_DENSE_CHANNELS` channels. Dense kernels are zero between different groups.

Shapes: B batch, H height, W width, C input channels, F output channels (features).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from resnet_jax.kernels import choice, native
from resnet_jax.kernels.single_conv import Gradients
from resnet_jax.kernels.single_conv import canonical_gradients as _canonical_gradients
from resnet_jax.kernels.single_conv import cpu_conv as _cpu_conv
from resnet_jax.kernels.single_conv import is_native as _is_native
from resnet_jax.kernels.single_conv import lax_conv as _lax_conv
from resnet_jax.kernels.single_conv import pointwise_gradients as _pointwise_gradients
from resnet_jax.runtime.arrays import Array, Float, Float32, prepend_axes

# Wide enough for the kernels to be efficient, narrow enough to multiply few zeros.
_DENSE_CHANNELS = 64

# Maps the gradient of a fused convolution's result to those of its arguments.
Pullback = Callable[[jax.Array], tuple[jax.Array, ...]]

# A JAX function without declared types.
_named: Callable[[jax.Array, str], jax.Array] = checkpoint_name


def conv2d(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "_ _ c//{groups} f"],
  stride: int = 1,
  padding: int = 0,
  groups: int = 1,
  dilation: int = 1,
) -> Float[Array, "b _ _ f"]:
  """Convolves images with a kernel, with `padding` zeros on every side.

  The padding is explicit, as in PyTorch: "SAME" would pad unevenly at stride 2
  and shift every imported weight by a pixel.

  Args:
    x: the images.
    kernel: [height, width, C / groups, F], same dtype as `x`.
    stride: step along H and W, >= 1; it must be 1 if `dilation` is above 1.
    padding: number of zeros on each side of H and W, >= 0; a multiple of `dilation`.
    groups: number of groups; it divides C and F. The features of a group see only the
      channels of that group.
    dilation: distance between the pixels that the kernel sees, >= 1.

  Returns:
    [B, H', W', F], dtype of `x`. H' = (H + 2 padding - dilation (height - 1) - 1) //
    stride + 1, and W' by the same formula. With kernels other than "plain", the
    result is differentiable in reverse mode only.
  """
  if choice.current() == "plain":
    return _lax_conv(x, kernel, stride, padding, groups, dilation)
  if dilation > 1:
    return _dilated_conv2d(x, kernel, padding, groups, dilation)
  return _tuned_conv2d(x, kernel, stride, padding, groups)


def conv2d_then(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "_ _ c//{groups} f"],
  bias: Float[Array, " f"],
  residual: Float[Array, "b h2 w2 f"] | None = None,
  *,
  stride: int = 1,
  padding: int = 0,
  groups: int = 1,
  dilation: int = 1,
  relu: bool = False,
  packed: Float[Array, "..."] | None = None,
) -> Float[Array, "b h2 w2 f"]:
  """Convolves as `conv2d`, then adds a bias and a residual, then applies ReLU.

  The native kernels, where they apply, do this in one pass over the output.

  Args:
    x: the images.
    kernel: see `conv2d`.
    bias: one value per feature, float32.
    residual: also added, in the dtype of the result; None adds nothing.
    stride: see `conv2d`.
    padding: see `conv2d`.
    groups: see `conv2d`.
    dilation: see `conv2d`.
    relu: whether to apply ReLU at the end.
    packed: the kernel from `pack_kernel`, which the native kernels then use instead of
      `kernel`; the result is not differentiable.

  Returns:
    See `conv2d`.
  """
  settings = {"stride": stride, "padding": padding}
  if _is_fused(x, kernel, stride, padding, groups, dilation):
    then = (bias,) if residual is None else (bias, residual)
    if packed is not None:
      return native.packed_conv2d(x, packed, *then, **settings, relu=relu)
    return _fused_conv2d(x, kernel, then, stride, padding, relu)
  y = conv2d(x, kernel, stride, padding, groups, dilation)
  y = (y + prepend_axes(bias, y)).astype(x.dtype)
  if residual is not None:
    y += residual
  return jax.nn.relu(y) if relu else y


def pack_kernel(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "_ _ c//{groups} f"],
  stride: int,
  padding: int,
  groups: int,
  dilation: int,
) -> Float32[Array, "..."] | None:
  """Returns the kernel as `conv2d_then` reads it fastest, or None if it is as it is.

  Args:
    x: images like those to convolve; their shape decides the algorithm.
    kernel: see `conv2d`.
    stride: see `conv2d`.
    padding: see `conv2d`.
    groups: see `conv2d`.
    dilation: see `conv2d`.
  """
  if _is_fused(x, kernel, stride, padding, groups, dilation):
    return native.pack(x.shape, kernel, stride, padding)
  return None


def _is_fused(
  x: jax.Array,
  kernel: jax.Array,
  stride: int,
  padding: int,
  groups: int,
  dilation: int,
) -> bool:
  """Whether one native kernel computes `conv2d_then`."""
  return (
    groups == dilation == 1
    and x.dtype == jnp.float32
    and _is_native(x, kernel, kernel.shape, stride, padding)
  )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _tuned_conv2d(
  x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1
) -> jax.Array:
  # In float32, without a gradient, a 1x1 convolution is faster than a matrix product.
  as_product = x.dtype == jnp.bfloat16
  return _convolve(x, kernel, stride, padding, groups, as_product)


def _convolve(
  x: jax.Array,
  kernel: jax.Array,
  stride: int,
  padding: int,
  groups: int,
  as_product: bool,
) -> jax.Array:
  on_cpu: native.ArrayFunction
  if groups > 1:
    on_cpu = partial(_dense_conv, stride=stride, padding=padding, groups=groups)
  elif as_product and _is_pointwise(kernel, padding):
    on_cpu = partial(_pointwise_conv, stride=stride)
  else:
    on_cpu = partial(_cpu_conv, stride=stride, padding=padding)
  default = partial(_lax_conv, stride=stride, padding=padding, groups=groups)
  y: jax.Array = lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)
  return y


def _is_pointwise(kernel: jax.Array, padding: int) -> bool:
  return kernel.shape[:2] == (1, 1) and padding == 0


def _pointwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """A 1x1 convolution as a matrix product."""
  return x[:, ::stride, ::stride] @ kernel[0, 0]


def _dilated_conv2d(
  x: jax.Array, kernel: jax.Array, padding: int, groups: int, dilation: int
) -> jax.Array:
  """`conv2d` at stride 1 over pixels that are `dilation` apart (à trous)."""
  settings: dict[str, Any] = {"padding": padding, "groups": groups}
  on_cpu = partial(_conv_of_phases, **settings, dilation=dilation)
  default = partial(_lax_conv, stride=1, **settings, dilation=dilation)
  y: jax.Array = lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)
  return y


def _conv_of_phases(
  x: jax.Array, kernel: jax.Array, padding: int, groups: int, dilation: int
) -> jax.Array:
  """Convolves the images of every `dilation`-th pixel, which is fast; joins them."""
  batch, *sizes, channels = x.shape
  x = jnp.pad(x, ((0, 0), *((0, -size % dilation) for size in sizes), (0, 0)))
  height, width = (size // dilation for size in x.shape[1:3])
  x = x.reshape(batch, height, dilation, width, dilation, channels)
  x = x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, height, width, channels)
  y = _tuned_conv2d(x, kernel, 1, padding // dilation, groups)
  _, height, width, features = y.shape
  y = y.reshape(batch, dilation, dilation, height, width, features)
  y = y.transpose(0, 3, 1, 4, 2, 5)
  y = y.reshape(batch, height * dilation, width * dilation, features)
  rows, columns = (
    size + 2 * padding - dilation * (taps - 1)
    for size, taps in zip(sizes, kernel.shape[:2], strict=True)
  )
  return y[:, :rows, :columns]


def _dense_conv(
  x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> jax.Array:
  """A grouped convolution as dense ones of several groups each."""
  height, width, inputs, features = kernel.shape
  features //= groups
  merged = max(1, _DENSE_CHANNELS // max(inputs, features))
  merged = next(n for n in range(min(merged, groups), 0, -1) if groups % n == 0)
  # Each group has its kernel at its own inputs, and zeros at those of the others.
  kernel = kernel.reshape(height, width, inputs, -1, merged, features)
  own = jnp.eye(merged, dtype=kernel.dtype)
  kernel = jnp.einsum("hwicgf,sg->chwsigf", kernel, own)
  kernel = kernel.reshape(-1, height, width, merged * inputs, merged * features)
  parts = zip(jnp.split(x, len(kernel), axis=-1), kernel, strict=True)
  outputs = [_tuned_conv2d(*part, stride, padding) for part in parts]
  return jnp.concatenate(outputs, axis=-1)


def _forward(
  x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _convolve(x, kernel, stride, padding, groups, as_product=True), (x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _fused_conv2d(
  x: jax.Array,
  kernel: jax.Array,
  then: tuple[jax.Array, ...],
  stride: int,
  padding: int,
  relu: bool,
) -> jax.Array:
  """`conv2d_then` as one native kernel; its gradient is not fused.

  Args:
    x: [B, H, W, C] float32.
    kernel: [height, width, C, F] float32.
    then: the bias and, optionally, the residual.
    stride: see `conv2d`.
    padding: see `conv2d`.
    relu: whether to apply ReLU at the end.
  """
  settings: dict[str, Any] = {"stride": stride, "padding": padding, "relu": relu}
  return native.conv2d(x, kernel, *then, **settings)


def _conv_and_then(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  *added: jax.Array,
  stride: int,
  padding: int,
  relu: bool,
) -> jax.Array:
  y = _named(_tuned_conv2d(x, kernel, stride, padding), "conv")
  y = sum(added, y + prepend_axes(bias, y))
  return jax.nn.relu(y) if relu else y


def _fused_forward(
  x: jax.Array,
  kernel: jax.Array,
  then: tuple[jax.Array, ...],
  stride: int,
  padding: int,
  relu: bool,
) -> tuple[jax.Array, Pullback]:
  settings: dict[str, Any] = {"stride": stride, "padding": padding, "relu": relu}
  return jax.vjp(partial(_conv_and_then, **settings), x, kernel, *then)


def _fused_backward(
  stride: int, padding: int, relu: bool, gradients: Pullback, dy: jax.Array
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
  del stride, padding, relu
  x, kernel, *then = gradients(dy)
  return x, kernel, tuple(then)


_fused_conv2d.defvjp(_fused_forward, _fused_backward)


def _backward(
  stride: int,
  padding: int,
  groups: int,
  residuals: tuple[jax.Array, jax.Array],
  dy: jax.Array,
) -> Gradients:
  def derived_gradients(
    conv: native.ArrayFunction, x: jax.Array, kernel: jax.Array, dy: jax.Array
  ) -> Gradients:
    gradients: Gradients = jax.vjp(conv, x, kernel)[1](dy)
    return gradients

  settings: dict[str, Any] = {"stride": stride, "padding": padding}
  on_cpu: Callable[..., Gradients]
  if groups > 1:
    on_cpu = partial(derived_gradients, partial(_dense_conv, **settings, groups=groups))
  elif _is_pointwise(residuals[1], padding):
    on_cpu = partial(_pointwise_gradients, stride=stride)
  else:
    on_cpu = partial(_canonical_gradients, **settings)
  default = partial(derived_gradients, partial(_lax_conv, **settings, groups=groups))
  both: Gradients
  both = lax.platform_dependent(*residuals, dy, cpu=on_cpu, default=default)
  return both


_tuned_conv2d.defvjp(_forward, _backward)
