"""The parts of a residual network: convolution, pooling, stems, squeeze-excite.

Shapes: B batch, H height, W width, C input channels. Images are NHWC. Parameters
are float32; `dtype` is what a layer computes in and returns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from resnet_jax.kernels import native
from resnet_jax.kernels.conv import conv2d, dilated_conv2d, fused_conv2d
from resnet_jax.models.norms import affine

ModuleDef = Callable[..., Any]

# He et al. 2015, "Delving deep into rectifiers", eq. 14 (fan-out), as torchvision.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
  """A square convolution without bias, as a batch norm follows it.

  Attributes:
    features: output channels.
    kernel_size: height and width of the kernel, in pixels.
    stride: step along both spatial axes.
    padding: zeros on each side, times `dilation`; None keeps the size at stride 1 (odd
      kernels).
    groups: divides both numbers of channels (Xie et al. 2016, "ResNeXt").
    dilation: distance of the pixels that a kernel sees, at stride 1.
    dtype: of the computation and the output.
  """

  features: int
  kernel_size: int
  stride: int = 1
  padding: int | None = None
  groups: int = 1
  dilation: int = 1
  kernel_init: Initializer = he_normal_fan_out
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].

    Raises:
      ValueError: both a stride and a dilation.
    """
    kernel = self.param("kernel", self.kernel_init, self._shape(x), jnp.float32)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    stride, padding = self.settings()
    if self.dilation == 1:
      y = conv2d(x, kernel, stride, padding, self.groups)
    elif stride == 1:
      padding *= self.dilation
      y = dilated_conv2d(x, kernel, padding, self.groups, self.dilation)
    else:
      raise ValueError(f"dilation={self.dilation} with stride={stride}; one must be 1")
    return checkpoint_name(y, "conv")

  def _shape(self, x: jax.Array) -> tuple[int, ...]:
    size = self.kernel_size
    return size, size, x.shape[-1] // self.groups, self.features

  def settings(self) -> tuple[int, int]:
    """Returns stride and padding."""
    size = self.kernel_size
    return self.stride, size // 2 if self.padding is None else self.padding

  def to_fuse(self, norm: nn.Module, x: jax.Array):
    """Returns the kernel and the norm's `affine` if they may become one call."""
    if (
      type(self) is not Conv  # What is derived from it may do more.
      or self.dilation > 1
      or self.is_initializing()
      or self.is_mutable_collection("intermediates")  # The layers' own results.
      or jnp.dtype(self.dtype) != jnp.float32
    ):
      return None
    constants = affine(norm, self.features)
    kernel = nn.meta.unbox(self.variables).get("params", {}).get("kernel")
    # The layers themselves say what is wrong with variables.
    if constants is None or kernel is None or kernel.shape != self._shape(x):
      return None
    if not native.fits(x, kernel, kernel.shape, *self.settings()):
      return None
    return kernel, constants


def conv_norm(
  conv: nn.Module,
  norm: nn.Module,
  x: jax.Array,
  relu: bool = True,
  shortcut: nn.Module | None = None,
  start: jax.Array | None = None,
) -> jax.Array:
  """Returns `shortcut(start, norm(conv(x)))` through ReLU.

  In evaluation on one CPU, where norms multiply and add constants, all of it is one
  call: interceptors of methods do not see the layers' own, unless `native.disabled()`.

  Args:
    conv: a bound convolution.
    norm: a bound norm.
    x: [B, H, W, C].
    relu: whether ReLU comes last.
    shortcut: a bound one that adds `project(start)`; None for none.
    start: [B, H, W, C], the block's input.
  """
  if isinstance(conv, Conv) and (found := conv.to_fuse(norm, x)):
    kernel, then = found
    if shortcut is not None:
      then = *then, shortcut.project(start).astype(x.dtype)
    return fused_conv2d(x, kernel, then, *conv.settings(), relu)
  y = norm(conv(x))
  if shortcut is not None:
    y = shortcut(start, y)
  return nn.relu(y) if relu else y


def max_pool_3x3(x: jax.Array) -> jax.Array:
  """Largest value of each 3x3 window at stride 2, over a border of -inf.

  Written as the maximum of nine shifted images: the gradient is then elementwise,
  where that of `nn.max_pool` is a slow select-and-scatter on a CPU.

  Args:
    x: [B, H, W, C], floating point.

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C], same dtype.
  """
  height, width = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
  rows = [x[:, i : i + height : 2] for i in range(3)]
  x = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
  columns = [x[:, :, i : i + width : 2] for i in range(3)]
  return jnp.maximum(jnp.maximum(columns[0], columns[1]), columns[2])


class SqueezeExcite(nn.Module):
  """Scales each channel by a sigmoid of all channels' means (Hu et al. 2017).

  Attributes:
    reduction: how many times narrower the hidden layer is.
  """

  reduction: int = 16

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to the same shape."""
    channels = x.shape[-1]
    scale = x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)
    hidden = max(1, channels // self.reduction)
    scale = nn.relu(nn.Dense(hidden, dtype=x.dtype, name="fc1")(scale))
    return x * nn.sigmoid(nn.Dense(channels, dtype=x.dtype, name="fc2")(scale))


def drop_path(x: jax.Array, key: jax.Array, rate: jax.Array) -> jax.Array:
  """Stochastic depth: zero for whole examples at random, the rest scaled up.

  Scaling while training leaves evaluation as it is, as in torchvision ("row" mode);
  Huang et al. 2016 scale in evaluation instead (eq. 5).

  Args:
    x: [B, H, W, C], what a block adds to its shortcut.
    key: PRNG key of the block.
    rate: scalar, probability that an example is dropped, in [0, 1).

  Returns:
    [B, H, W, C], same dtype.
  """
  kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, 1))
  return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)
