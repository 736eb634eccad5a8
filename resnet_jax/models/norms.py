"""Normalisation layers, all called alike, so that a network takes any of them.

A network calls `norm(use_running_average=..., dtype=..., name=...)(x)` and may add
`scale_init`; the parameters are named `scale` and `bias` in each. All arithmetic is
float32; `dtype` is what they return.

Shapes: B batch, H height, W width, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from resnet_jax import kernels
from resnet_jax.runtime.arrays import Array, Float, Float32, prepend_axes
from resnet_jax.runtime.errors import UserError


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
    axis_name: of the axis, or axes, of a `pmap`, `vmap` or `shard_map` over which the
      statistics are pooled, as in Flax; None pools nothing. Under `jit` alone it must
      be None.
    axis_index_groups: lists of indices along that axis, see `jax.lax.pmean`: only the
      devices of one list pool their statistics; None pools over all.
    use_running_average: normalise by the running statistics, and keep them.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  unbiased: bool = False
  groups: int = 1
  axis_name: str | tuple[str, ...] | None = None
  axis_index_groups: Sequence[Sequence[int]] | None = None
  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalises; `groups` divides B.

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
      y = kernels.normalize(x, mean, var, scale, bias, self.epsilon)
      return y.astype(self.dtype)
    groups = 1 if self.is_initializing() else self.groups
    if len(x) % groups:
      raise UserError(
        f"a batch of {len(x)} images does not split into {groups} groups of batch norm"
      )
    number = x.size // groups // x.shape[-1]
    pool = None
    if self.axis_name is not None and not self.is_initializing():
      over = {"axis_index_groups": self.axis_index_groups}
      pool = partial(lax.pmean, axis_name=self.axis_name, **over)
      number *= lax.psum(1, self.axis_name, **over)
    y, mean, var = kernels.batch_norm(x, scale, bias, self.epsilon, groups, pool)
    if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
      kept_var = var * (number / max(1, number - 1)) if self.unbiased else var
      for running, new in ((running_mean, mean), (running_var, kept_var)):
        new = new.reshape(-1, *features).mean(0)
        running.value = self.momentum * running.value + (1 - self.momentum) * new
    return y.astype(self.dtype)

  def to_affine(
    self, variables: Mapping[str, Mapping[str, Any]]
  ) -> tuple[Float32[Array, "*blocks c"], Float32[Array, "*blocks c"]]:
    """Returns what evaluation multiplies by and adds.

    Args:
      variables: this layer's own, by collection.
    """
    params, stats = variables["params"], variables["batch_stats"]
    scale = params["scale"] * lax.rsqrt(stats["var"] + jnp.float32(self.epsilon))
    return scale, params["bias"] - stats["mean"] * scale


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
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalises."""
    norm = nn.GroupNorm(
      num_groups=math.gcd(self.num_groups, x.shape[-1]),
      epsilon=self.epsilon,
      dtype=self.dtype,
      scale_init=self.scale_init,
    )
    nn.share_scope(self, norm)
    y: jax.Array = norm(x)
    return y


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
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalises."""

    def constant(name: str, init: Initializer) -> jax.Array:
      arguments = jax.random.key(0), x.shape[-1:], jnp.float32
      value = self.variable("batch_stats", name, init, *arguments).value
      return jax.lax.stop_gradient(value)

    scale = constant("scale", self.scale_init)
    bias = constant("bias", nn.initializers.zeros)
    mean = constant("mean", nn.initializers.zeros)
    var = constant("var", nn.initializers.ones)
    scale = scale * jax.lax.rsqrt(var + self.epsilon)
    bias = bias - mean * scale
    return (x * prepend_axes(scale, x) + prepend_axes(bias, x)).astype(self.dtype)

  def to_affine(
    self, variables: Mapping[str, Mapping[str, Any]]
  ) -> tuple[Float32[Array, "*blocks c"], Float32[Array, "*blocks c"]]:
    """As `BatchNorm.to_affine`."""
    stats = variables["batch_stats"]
    scale = stats["scale"] * lax.rsqrt(stats["var"] + jnp.float32(self.epsilon))
    return scale, stats["bias"] - stats["mean"] * scale


class NoNorm(nn.Module):
  """What is left of a layer without a norm: the bias that a norm would have.

  Attributes:
    use_running_average: has no meaning here.
  """

  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalises."""
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
    return (x + prepend_axes(bias, x)).astype(self.dtype)


class FoldedNorm(nn.Module):
  """A norm in evaluation after `fold_batch_norm`: constants for each channel.

  Where a convolution before it took over the scale, only the bias is left, and the
  convolution adds that too.

  Attributes:
    use_running_average: has no meaning here.
  """

  FOLDED: ClassVar[bool] = True

  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalises."""
    features = x.shape[-1:]
    if self.has_variable("params", "scale"):
      scale = self.param("scale", self.scale_init, features, jnp.float32)
      x = x * prepend_axes(scale, x)
    bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
    return (x + prepend_axes(bias, x)).astype(self.dtype)


NORMS = {
  "batch": BatchNorm,
  "unbiased_batch": partial(BatchNorm, unbiased=True),
  "group": GroupNorm,
  "frozen": FrozenBatchNorm,
  "none": NoNorm,
}
