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
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike


class BatchNorm(nn.Module):
  """Batch normalisation (Ioffe & Szegedy 2015) with torchvision's constants.

  Under `jit` the batch is the whole one, over all devices, whatever their number.

  Attributes:
    momentum: weight of the old running value; torchvision's 0.1 is of the new one.
    epsilon: added to the variance.
    unbiased: keep the running variance that divides by n - 1, as PyTorch and the
      paper's algorithm 2 do; else by n, as Flax and TensorFlow do; n is the number of
      values that the variance is of.
    groups: equal parts, one after the other, that the batch is normalised in, each by
      its own statistics; the running ones move by their average. With as many as
      there are devices, none waits for another's ("ghost batch norm", Hoffer et al.
      2017, algorithm 1; the usual one on several GPUs).
    use_running_average: normalise by the running statistics, and keep them.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  unbiased: bool = False
  groups: int = 1
  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to the same shape; `groups` divides B.

    Raises:
      ValueError: it does not.
    """
    features = x.shape[-1:]
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    scale = self.param("scale", self.scale_init, features, jnp.float32)
    bias = self.param("bias", zeros, features, jnp.float32)
    stats = partial(self.variable, "batch_stats")
    running_mean = stats("mean", zeros, None, features, jnp.float32)
    running_var = stats("var", ones, None, features, jnp.float32)

    if self.use_running_average:
      return self._normalize(x, running_mean.value, running_var.value, scale, bias)
    groups = 1 if self.is_initializing() else self.groups
    if len(x) % groups:
      raise ValueError(
        f"a batch of {len(x)} images does not split into {groups} groups of batch norm"
      )
    # Without groups no axis for them, whose only effect would be to hinder layouts.
    parts = x if groups == 1 else x.reshape(groups, -1, *x.shape[1:])
    axes = tuple(range(parts.ndim - 4, parts.ndim - 1))
    values = parts.astype(jnp.float32)
    # Both in one pass; rounding may leave the difference below 0.
    mean, square = values.mean(axes), lax.square(values).mean(axes)
    var = jnp.maximum(square - lax.square(mean), 0)
    if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
      number = math.prod(parts.shape[axis] for axis in axes)
      kept_var = var * (number / max(1, number - 1)) if self.unbiased else var
      for running, new in ((running_mean, mean), (running_var, kept_var)):
        new = new.reshape(-1, *features).mean(0)
        running.value = self.momentum * running.value + (1 - self.momentum) * new
    mean, var = (s.reshape((*s.shape[:-1], 1, 1, 1, *features)) for s in (mean, var))
    return self._normalize(parts, mean, var, scale, bias).reshape(x.shape)

  def _normalize(self, x, mean, var, scale, bias) -> jax.Array:
    y = (x - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias
    return y.astype(self.dtype)


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
