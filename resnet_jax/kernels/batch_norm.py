"""The arithmetic of batch norm: by XLA, or with sums computed by `native`."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from resnet_jax.kernels import choice, native
from resnet_jax.runtime.arrays import Array, Float, Float32, prepend_axes

# The normalised array, its mean and its variance.
Normalised = tuple[jax.Array, jax.Array, jax.Array]
Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # x, scale, mean, var.
BatchNorm = Callable[[jax.Array, jax.Array, jax.Array, float], Normalised]
Moments = Callable[[jax.Array], tuple[jax.Array, jax.Array] | jax.Array]
# Averages each array over devices.
Pool = Callable[[tuple[jax.Array, jax.Array]], tuple[jax.Array, jax.Array]]

# A JAX function without declared types.
_named: Callable[[jax.Array, str], jax.Array] = checkpoint_name


def batch_norm(
  x: Float[Array, "b h w c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  epsilon: float,
  groups: int = 1,
  pool: Pool | None = None,
) -> tuple[
  Float[Array, "b h w c"], Float32[Array, "*groups c"], Float32[Array, "*groups c"]
]:
  """Normalises each channel of a batch by the batch's own mean and variance.

  See Ioffe & Szegedy 2015, algorithm 1. With `groups` above 1, the batch is
  split into this many consecutive parts, and each part is normalised by its own
  statistics ("ghost batch norm", Hoffer et al. 2017, algorithm 1).

  Args:
    x: the batch.
    scale: one value per channel, float32.
    bias: one value per channel, float32.
    epsilon: added to the variance.
    groups: number of parts of the batch; it divides B.
    pool: averages statistics over the devices of a `pmap` or `shard_map`; None
      keeps those of each device.

  Returns:
    The normalised batch, float32 or in the dtype of `x`; mean and variance of each
    group: [C] for one group, else [groups, C].
  """
  # An axis for a single group would only prevent good array layouts.
  parts = x if groups == 1 else x.reshape(groups, -1, *x.shape[1:])
  function: BatchNorm = partial(_batch_norm, moments=partial(_moments, pool=pool))
  is_plain = groups == 1 and pool is None
  is_float32 = scale.dtype == bias.dtype == jnp.float32
  if is_plain and is_float32 and choice.current() == "native" and native.fits_norm(x):
    function = _native_batch_norm
  y, mean, var = function(parts, scale, bias, epsilon)
  return y.reshape(x.shape), mean, var


def normalize(
  x: Float[Array, "*b c"],
  mean: Float32[Array, "... c"],
  var: Float32[Array, "... c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  epsilon: float,
) -> Float[Array, "*b c"]:
  """Normalises by given statistics per channel, in float32."""
  mean, var = prepend_axes(mean, x), prepend_axes(var, x)
  scale, bias = prepend_axes(scale, x), prepend_axes(bias, x)
  return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


def _moments(
  x: Float[Array, "*groups b h w c"], pool: Pool | None = None
) -> tuple[Float32[Array, "*groups c"], Float32[Array, "*groups c"]]:
  """Returns mean and variance over B, H and W, averaged by `pool`."""
  x, axes = x.astype(jnp.float32), (-4, -3, -2)
  # One pass computes both means. Rounding may make E[x^2] - E[x]^2 negative.
  moments = x.mean(axes), lax.square(x).mean(axes)
  mean, square = moments if pool is None else pool(moments)
  return mean, jnp.maximum(square - lax.square(mean), 0)


def _batch_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  moments: Moments = _moments,
) -> Normalised:
  """Returns [..., B, H, W, C] normalised over B, H and W, and its moments."""
  mean, var = (_named(moment, "moments") for moment in moments(x))
  wide_mean, wide_var = (jnp.expand_dims(value, (-4, -3, -2)) for value in (mean, var))
  return normalize(x, wide_mean, wide_var, scale, bias, epsilon), mean, var


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _native_batch_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> Normalised:
  """`_batch_norm` with a result in the dtype of `x`.

  `native` computes the sums over the batch, here and in the gradient. The function is
  differentiable in reverse mode only. Its gradient is differentiable in both modes.
  """
  return _native_values(x, scale, bias, epsilon)


def _native_values(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> Normalised:
  moments = native.with_derivatives(native.moments, lambda x: jnp.stack(_moments(x)))
  y, mean, var = _batch_norm(x, scale, bias, epsilon, moments)
  return y.astype(x.dtype), mean, var


def _native_forward(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[Normalised, Residuals]:
  y, mean, var = _native_values(x, scale, bias, epsilon)
  return (y, mean, var), (x, scale, mean, var)


def _native_backward(
  epsilon: float, residuals: Residuals, gradients: Normalised
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Ioffe & Szegedy 2015, section 3, plus the gradients through `mean` and `var`."""
  (x, scale, mean, var), (dy, dmean, dvar) = residuals, gradients

  def reference(x: jax.Array, mean: jax.Array, dy: jax.Array) -> jax.Array:
    dy = dy.astype(jnp.float32)
    return jnp.stack(
      [dy.sum((0, 1, 2)), (dy * (x - prepend_axes(mean, x))).sum((0, 1, 2))]
    )

  sums = native.with_derivatives(native.batch_norm_sums, reference)
  dy_sum, dy_x_sum = sums(x, mean, dy)
  number = x.size // x.shape[-1]
  rstd = lax.rsqrt(var + epsilon)
  # The gradient of x is constant + (x - mean) * slope + dy * factor.
  constant = (dmean - scale * rstd * dy_sum) / number
  slope = (2 * dvar - scale * rstd**3 * dy_x_sum) / number
  mean, constant, slope, factor = (
    prepend_axes(values, x) for values in (mean, constant, slope, scale * rstd)
  )
  dx = constant + (x - mean) * slope + dy * factor
  return dx.astype(x.dtype), dy_x_sum * rstd, dy_sum


_native_batch_norm.defvjp(_native_forward, _native_backward)
