"""A ResNet like the one in the Flax ImageNet example, from which JAX users start.

It uses the stock `nn.Conv` and `nn.BatchNorm`, NHWC images, "SAME" padding except in
the stem, and one `jax.jit` of the step. It has the structure of that example, but the
code is new.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn


class Block(nn.Module):
  """A basic or a bottleneck block with a projection where the shape changes."""

  features: int
  stride: int
  bottleneck: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train: bool):
    conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = partial(
      nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
    )
    outputs = self.features * (4 if self.bottleneck else 1)
    kernels = (1, 3, 1) if self.bottleneck else (3, 3)
    y = x
    for i, size in enumerate(kernels):
      last = i == len(kernels) - 1
      stride = self.stride if i == len(kernels) - 2 else 1
      y = conv(outputs if last else self.features, (size, size), (stride, stride))(y)
      y = norm()(y)
      y = y if last else nn.relu(y)
    if x.shape != y.shape:
      x = norm()(conv(outputs, (1, 1), (self.stride, self.stride))(x))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """The whole network; `small` selects the CIFAR stem."""

  sizes: tuple[int, ...]
  features: int = 64
  bottleneck: bool = True
  small: bool = False
  num_classes: int = 1000
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False):
    """Maps [B, H, W, 3] to logits [B, num_classes]."""
    size, stride = (3, 1) if self.small else (7, 2)
    x = nn.Conv(
      self.features,
      (size, size),
      (stride, stride),
      padding=size // 2,
      use_bias=False,
      dtype=self.dtype,
    )(x)
    norm = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)
    x = nn.relu(norm(x))
    if not self.small:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for i, size in enumerate(self.sizes):
      for j in range(size):
        stride = 2 if i > 0 and j == 0 else 1
        block = Block(self.features * 2**i, stride, self.bottleneck, self.dtype)
        x = block(x, train)
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
    return x.astype(jnp.float32)
