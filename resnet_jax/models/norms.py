"""Normalisation layers, all called alike, so that a network takes any of them.

A network calls `norm(use_running_average=..., dtype=..., name=...)(x)` and may add
`scale_init`; the parameters are named `scale` and `bias` in each. All arithmetic is
float32; `dtype` is what they return.

Shapes: B batch, H height, W width, C channels.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike


class BatchNorm(nn.BatchNorm):
  """Batch normalisation (Ioffe & Szegedy 2015) with torchvision's constants.

  Under `jit` the statistics are of the whole batch, over all devices.

  Attributes:
    momentum: weight of the old running value; torchvision's 0.1 is of the new one.
    epsilon: added to the variance.
    unbiased: keep the running variance that divides by B H W - 1, as PyTorch and
      the paper's algorithm 2 do; else by B H W, as Flax and TensorFlow do.
  """

  momentum: float = 0.9
  unbiased: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
    """Maps [B, H, W, C] to the same shape."""
    moves = not self.use_running_average and not self.is_initializing()
    moves = moves and self.is_mutable_collection("batch_stats")
    if not (self.unbiased and moves):
      return super().__call__(x)
    kept = self.momentum * self.get_variable("batch_stats", "var")
    y = super().__call__(x)
    var: jax.Array = self.get_variable("batch_stats", "var")
    # Flax added (1 - momentum) * biased variance; a share of 1 / (n - 1) is missing.
    share = (var - kept) / max(1, math.prod(x.shape[:-1]) - 1)
    self.put_variable("batch_stats", "var", var + share)
    return y


class GroupNorm(nn.Module):
  """Group normalisation (Wu & He 2018): no statistics of the batch, none kept.

  Attributes:
    num_groups: of channels; where it does not divide C, the largest common divisor:
      16 channels are 16 groups, which is instance normalisation.
    use_running_average: has no meaning here.
  """

  num_groups: int = 32
  epsilon: float = 1e-5
  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to the same shape."""
    norm = nn.GroupNorm(
      num_groups=math.gcd(self.num_groups, x.shape[-1]),
      epsilon=self.epsilon,
      dtype=self.dtype,
      scale_init=self.scale_init,
    )
    nn.share_scope(self, norm)
    return norm(x)


class FrozenBatchNorm(nn.Module):
  """Batch norm that never moves: statistics, scale and bias, in training too.

  All four are kept in `batch_stats`, out of the reach of any optimiser and of its
  weight decay, as torchvision's FrozenBatchNorm2d keeps them in buffers.

  Attributes:
    epsilon: added to the variance.
    use_running_average: has no meaning here: always the running ones.
  """

  epsilon: float = 1e-5
  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to the same shape."""

    def constant(name: str, init: Initializer) -> jax.Array:
      arguments = jax.random.key(0), x.shape[-1:], jnp.float32
      value = self.variable("batch_stats", name, init, *arguments).value
      return jax.lax.stop_gradient(value)

    scale = constant("scale", self.scale_init)
    bias = constant("bias", nn.initializers.zeros)
    mean = constant("mean", nn.initializers.zeros)
    var = constant("var", nn.initializers.ones)
    scale = scale * jax.lax.rsqrt(var + self.epsilon)
    return (x * scale + (bias - mean * scale)).astype(self.dtype)


NORMS = {
  "batch": BatchNorm,
  "unbiased_batch": partial(BatchNorm, unbiased=True),
  "group": GroupNorm,
  "frozen": FrozenBatchNorm,
}
