"""The parts of a residual network: convolution, norm, stems, shortcuts.

Shapes: B batch, H height, W width, C input channels. Images are NHWC. Parameters
are float32; `dtype` is what a layer computes in and returns.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from resnet_jax.models.conv import conv2d

ModuleDef = Callable[..., Any]

# He et al. 2015, "Delving deep into rectifiers", eq. 14 (fan-out), as torchvision.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# torchvision's momentum of 0.1 is the weight of the new value; Flax's 0.9 of the old.
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class Conv(nn.Module):
  """A square convolution without bias; a batch norm always follows it.

  Attributes:
    features: output channels.
    kernel_size: height and width of the kernel, in pixels.
    stride: step along both spatial axes.
    padding: zeros on each side; None keeps the size at stride 1 (odd kernels).
    dtype: of the computation and the output.
  """

  features: int
  kernel_size: int
  stride: int = 1
  padding: int | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param("kernel", he_normal_fan_out, shape, jnp.float32)
    padding = self.kernel_size // 2 if self.padding is None else self.padding
    return conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding)


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


class ImageNetStem(nn.Module):
  """7x7 convolution at stride 2, then a 3x3 max-pool at stride 2 (paper, table 1)."""

  features: int
  conv: ModuleDef = Conv
  norm: ModuleDef = BatchNorm

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / 4, W / 4, features], sizes rounded up."""
    x = self.conv(self.features, 7, 2, name="conv")(x)
    return max_pool_3x3(nn.relu(self.norm(name="bn")(x)))


class CifarStem(nn.Module):
  """3x3 convolution at full resolution (paper, section 4.2)."""

  features: int
  conv: ModuleDef = Conv
  norm: ModuleDef = BatchNorm

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, H, W, features]."""
    x = self.conv(self.features, 3, name="conv")(x)
    return nn.relu(self.norm(name="bn")(x))


class IdentityShortcut(nn.Module):
  """Option A: every `stride`-th pixel, new channels filled with zeros; no parameters.

  Half of the zero channels go on each side, as in the widely used CIFAR weights of
  akamaster/pytorch_resnet_cifar10; the paper (section 4.1) leaves the place open.
  """

  features: int
  stride: int
  conv: ModuleDef = Conv
  norm: ModuleDef = BatchNorm

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    before, odd = divmod(self.features - x.shape[-1], 2)
    channels = (before, before + odd)
    return jnp.pad(
      x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), channels)
    )


class ProjectionShortcut(nn.Module):
  """Options B and C: a 1x1 convolution where the shape changes (B) or always (C)."""

  features: int
  stride: int
  always: bool = False
  conv: ModuleDef = Conv
  norm: ModuleDef = BatchNorm

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    if not self.always and self.stride == 1 and x.shape[-1] == self.features:
      return x
    x = self.conv(self.features, 1, self.stride, name="conv")(x)
    return self.norm(name="bn")(x)


class NoShortcut(nn.Module):
  """No shortcut: adding this zero turns a residual block into a plain one."""

  features: int
  stride: int
  conv: ModuleDef = Conv
  norm: ModuleDef = BatchNorm

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps anything to a scalar zero of its dtype."""
    return jnp.zeros((), x.dtype)
