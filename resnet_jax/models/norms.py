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

from resnet_jax.kernels import native
from resnet_jax.kernels.batch_norm import _batch_norm, _native_batch_norm, _normalize


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
      mean, var = running_mean.value, running_var.value
      return _normalize(x, mean, var, scale, bias, self.epsilon).astype(self.dtype)
    groups = 1 if self.is_initializing() else self.groups
    if len(x) % groups:
      raise ValueError(
        f"a batch of {len(x)} images does not split into {groups} groups of batch norm"
      )
    # Without groups no axis for them, whose only effect would be to hinder layouts.
    parts = x if groups == 1 else x.reshape(groups, -1, *x.shape[1:])
    batch_norm = _batch_norm
    is_usual = scale.dtype == bias.dtype == jnp.float32 and x.dtype == self.dtype
    if groups == 1 and native.fits_norm(x) and is_usual:
      batch_norm = _native_batch_norm
    y, mean, var = batch_norm(parts, scale, bias, self.epsilon)
    if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
      number = x.size // groups // x.shape[-1]
      kept_var = var * (number / max(1, number - 1)) if self.unbiased else var
      for running, new in ((running_mean, mean), (running_var, kept_var)):
        new = new.reshape(-1, *features).mean(0)
        running.value = self.momentum * running.value + (1 - self.momentum) * new
    return y.reshape(x.shape).astype(self.dtype)


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


class NoNorm(nn.Module):
  """What is left of a layer without a norm: the bias that a norm would have.

  Attributes:
    use_running_average: has no meaning here.
  """

  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to the same shape."""
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
    return (x + bias).astype(self.dtype)


def affine(norm: nn.Module, features: int) -> tuple[jax.Array, jax.Array] | None:
  """What a norm multiplies by and adds, each [features] float32.

  None if it does anything else, or has not all its variables in that shape.
  """
  if type(norm) is FrozenBatchNorm:
    collection = "batch_stats"
  elif type(norm) is BatchNorm and norm.use_running_average:
    collection = "params"
  else:
    return None
  variables = nn.meta.unbox(norm.variables)
  weights, stats = (variables.get(key, {}) for key in (collection, "batch_stats"))
  values = [
    weights.get("scale"),
    weights.get("bias"),
    stats.get("mean"),
    stats.get("var"),
  ]
  if any(value is None or value.shape != (features,) for value in values):
    return None
  if jnp.dtype(norm.dtype) != jnp.float32:
    return None
  if type(norm) is FrozenBatchNorm:
    values = lax.stop_gradient(values)
  scale, bias, mean, var = (value.astype(jnp.float32) for value in values)
  scale *= lax.rsqrt(var + jnp.float32(norm.epsilon))
  return scale, bias - mean * scale


NORMS = {
  "batch": BatchNorm,
  "unbiased_batch": partial(BatchNorm, unbiased=True),
  "group": GroupNorm,
  "frozen": FrozenBatchNorm,
  "none": NoNorm,
}
