"""Normalisation layers with one interface, so that a network can use any of them.

A network calls `norm(use_running_average=..., dtype=..., name=...)(x)` and may add
`scale_init`. Its scale and bias, if any, are named `scale` and `bias`. All arithmetic
is float32; `dtype` is the dtype of the output. A norm with ACTIVATES replaces the ReLU
by an activation of its own; the network calls it as `norm(x, activate=...)`.

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

  Under `jit`, the statistics are those of the whole batch, over all devices.

  Attributes:
    momentum: weight of the old running value. torchvision's 0.1 is the weight of the
      new one.
    epsilon: added to the variance.
    unbiased: divide by n - 1 in the running variance of n values, as PyTorch and the
      paper's algorithm 2 do. Without it, divide by n, as Flax and TensorFlow do.
    groups: number of equal, consecutive parts of the batch. Each is normalised by its
      own statistics; their average updates the running ones. With one part per device,
      no device waits for another ("ghost batch norm", Hoffer et al. 2017, algorithm 1;
      the usual batch norm on several GPUs).
    axis_name: name of the axis, or axes, of a `pmap`, `vmap` or `shard_map` over which
      the statistics are pooled, as in Flax; None pools nothing. Under `jit` alone it
      must be None.
    axis_index_groups: lists of indices along that axis, see `jax.lax.pmean`. Only the
      devices of one list pool their statistics; None pools over all.
    use_running_average: normalise by the running statistics, and do not update them.
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
    """Normalises.

    Raises:
      ValueError: `groups` does not divide B.
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
    if number == 1 and not self.is_initializing():
      raise UserError(
        "batch norm has a single value of each channel to normalise, which becomes 0: "
        "one image of 1x1 pixels on each device or in each group; train with more "
        "images on each device, with larger images, or with another norm"
      )
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
    """Returns the scale and bias of `x * scale + bias`, which evaluation computes.

    Args:
      variables: variables of this layer, by collection.
    """
    params, stats = variables["params"], variables["batch_stats"]
    scale = params["scale"] * lax.rsqrt(stats["var"] + jnp.float32(self.epsilon))
    return scale, params["bias"] - stats["mean"] * scale


class GroupNorm(nn.Module):
  """Group normalisation (Wu & He 2018), without batch or running statistics.

  Attributes:
    num_groups: number of groups of channels. If it does not divide C, the greatest
      common divisor of both is used instead. With 32, for example, 16 channels get 16
      groups of one channel each, which is instance normalisation.
    use_running_average: unused.
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
  """Batch norm with constant statistics, scale and bias, in training too.

  All four are in `batch_stats`, so that no optimiser and no weight decay changes them.
  torchvision's FrozenBatchNorm2d keeps them in buffers for that reason.

  Attributes:
    epsilon: added to the variance.
    use_running_average: unused; the running statistics are always used.
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
    """See `BatchNorm.to_affine`."""
    stats = variables["batch_stats"]
    scale = stats["scale"] * lax.rsqrt(stats["var"] + jnp.float32(self.epsilon))
    return scale, stats["bias"] - stats["mean"] * scale


class NoNorm(nn.Module):
  """No normalisation: only adds a bias, as a norm would.

  Attributes:
    use_running_average: unused.
  """

  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Adds the bias."""
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
    return (x + prepend_axes(bias, x)).astype(self.dtype)


class _ActivatingNorm(nn.Module):
  """Base class of the norms with an activation of their own.

  Attributes:
    epsilon: added to the variance or the mean square.
    use_running_average: unused.
  """

  ACTIVATES: ClassVar[bool] = True

  epsilon: float = 1e-5
  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  def scaled(self, y: Float32[Array, "b h w c"]) -> Float32[Array, "b h w c"]:
    """Multiplies by the scale and adds the bias."""
    features = y.shape[-1:]
    scale = self.param("scale", self.scale_init, features, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
    return y * prepend_axes(scale, y) + prepend_axes(bias, y)


class EvoNormS0(_ActivatingNorm):
  """Normalisation and activation in one: x sigmoid(v x) / std (Liu et al. 2020).

  The standard deviation is computed over a group of channels of one example (table 2).

  Attributes:
    num_groups: as in `GroupNorm`.
  """

  num_groups: int = 32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], activate: bool = True
  ) -> Float[Array, "b h w c"]:
    """Normalises and activates; without `activate`, only scales and adds the bias."""
    y = x.astype(jnp.float32)
    if activate:
      v = self.param("v", nn.initializers.ones, x.shape[-1:], jnp.float32)
      groups = y.reshape(*y.shape[:3], math.gcd(self.num_groups, y.shape[-1]), -1)
      variance = groups.var(axis=(1, 2, 4), keepdims=True)
      y = groups * lax.rsqrt(variance + self.epsilon)
      y = y.reshape(x.shape) * nn.sigmoid(x * prepend_axes(v, x))
    return self.scaled(y).astype(self.dtype)


class FilterResponseNorm(_ActivatingNorm):
  """Divides by the root mean square of a channel; the activation is max(y, tau).

  Singh & Krishnan 2019, "Filter response normalization layer", equations 1 to 4.
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], activate: bool = True
  ) -> Float[Array, "b h w c"]:
    """Normalises, and activates if `activate` is True."""
    y = x.astype(jnp.float32)
    y *= lax.rsqrt(jnp.square(y).mean(axis=(1, 2), keepdims=True) + self.epsilon)
    y = self.scaled(y)
    if activate:
      tau = self.param("tau", nn.initializers.zeros, x.shape[-1:], jnp.float32)
      y = jnp.maximum(y, prepend_axes(tau, y))
    return y.astype(self.dtype)


class FoldedNorm(nn.Module):
  """A norm after `fold_batch_norm`: a constant scale and bias per channel.

  If the scale was multiplied into the kernel of the convolution before it, this norm
  has only the bias. `conv_norm` then lets the convolution add the bias.

  Attributes:
    use_running_average: unused.
  """

  FOLDED: ClassVar[bool] = True

  use_running_average: bool | None = None
  dtype: DTypeLike = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Multiplies by the scale, if there is one, and adds the bias."""
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
  "evo": EvoNormS0,
  "filter_response": FilterResponseNorm,
  "none": NoNorm,
}
