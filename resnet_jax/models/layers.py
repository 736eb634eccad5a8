"""The layers of a residual network: convolution, channel attention, stochastic depth.

Shapes: B batch, H height, W width, C input channels. Images are NHWC. Parameters
are float32; `dtype` is the dtype of a layer's computation and output.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from resnet_jax.kernels import conv2d
from resnet_jax.kernels.conv import conv2d_then, pack_kernel
from resnet_jax.runtime.arrays import Array, Float, Float32, PRNGKeyArray
from resnet_jax.runtime.errors import UserError

ModuleDef = Callable[..., Any]

# The collection of kernels in the order in which the native kernels read them. A folded
# network uses them if they are there, and writes them if the collection is mutable.
PACKED = "packed"

Path = tuple[str, ...]  # The names that lead to a module of a network.

# He et al. 2015, "Delving deep into rectifiers", eq. 14 (fan-out), as torchvision.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
  """A square convolution without bias; the batch norm after it has a bias.

  Attributes:
    features: output channels.
    kernel_size: height and width of the kernel, in pixels.
    stride: step along both spatial axes.
    padding: number of zeros on each side, before multiplication by `dilation`; None
      keeps the size at stride 1 (odd kernels only).
    groups: number of groups of channels (Xie et al. 2016, "ResNeXt"). It divides the
      input and the output channels.
    dilation: distance between the pixels that a kernel combines; > 1 needs `stride` 1.
    dtype: dtype of the computation and the output.
  """

  features: int
  kernel_size: int
  stride: int = 1
  padding: int | None = None
  groups: int = 1
  dilation: int = 1
  kernel_init: Initializer = he_normal_fan_out
  dtype: DTypeLike = jnp.float32

  # Whether `fold_batch_norm` may multiply the kernel by a norm's scale, and `conv_norm`
  # may call `then` in place of `__call__`. It is False for a subclass that overrides
  # `__call__` but does not set FOLDS.
  FOLDS: ClassVar[bool] = True

  def __init_subclass__(cls, **kwargs: Any) -> None:
    if "__call__" in vars(cls) and "FOLDS" not in vars(cls):
      cls.FOLDS = False
    super().__init_subclass__(**kwargs)

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b _ _ {self.features}"]:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features].

    Raises:
      UserError: `stride` and `dilation` are both above 1.
    """
    kernel = self.param("kernel", self.kernel_init, self._shape(x), jnp.float32)
    kernel = self.standardize(kernel)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y: jax.Array = checkpoint_name(conv2d(x, kernel, **self._settings()), "conv")
    return y

  def then(
    self,
    x: Float[Array, "b h w c"],
    bias: Float[Array, " {self.features}"],
    residual: Float[Array, "b h2 w2 {self.features}"] | None,
    relu: bool,
  ) -> Float[Array, "b h2 w2 {self.features}"]:
    """Convolves, adds a bias and a residual, and applies ReLU: see `conv2d_then`."""
    kernel: jax.Array = self.get_variable("params", "kernel")
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if residual is not None:
      residual = residual.astype(self.dtype)
    settings = self._settings()
    if self.is_mutable_collection(PACKED):
      packed = pack_kernel(x, kernel, **settings)
      if packed is not None:
        self.put_variable(PACKED, "kernel", packed)
    packed = self.get_variable(PACKED, "kernel")
    return conv2d_then(x, kernel, bias, residual, **settings, relu=relu, packed=packed)

  def standardize(self, kernel: Float32[Array, "k k i o"]) -> Float32[Array, "k k i o"]:
    """Returns the kernel that convolves; a subclass may normalise it here."""
    return kernel

  def _shape(self, x: jax.Array) -> tuple[int, ...]:
    size = self.kernel_size
    return size, size, x.shape[-1] // self.groups, self.features

  def _settings(self) -> dict[str, int]:
    if self.dilation > 1 and self.stride > 1:
      raise UserError(
        f"dilation={self.dilation} with stride={self.stride}; one must be 1"
      )
    padding = self.kernel_size // 2 if self.padding is None else self.padding
    return {
      "stride": self.stride,
      "padding": padding * self.dilation,
      "groups": self.groups,
      "dilation": self.dilation,
    }


class StandardizedConv(Conv):
  """A convolution whose kernel has mean 0 and variance 1 for each output channel.

  Weight standardisation (Qiao et al. 2019, equations 7 and 8); the networks of BiT
  (Kolesnikov et al. 2019) use it with group norm.

  Attributes:
    epsilon: added to the variance.
  """

  FOLDS: ClassVar[bool] = False

  epsilon: float = 1e-6

  def standardize(self, kernel: Float32[Array, "k k i o"]) -> Float32[Array, "k k i o"]:
    """Returns the standardised kernel."""
    centered = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
    variance = jnp.square(centered).mean(axis=(0, 1, 2), keepdims=True)
    return centered * jax.lax.rsqrt(variance + self.epsilon)


# The paths of (convolution, norm) that `conv_norm` sees within `recorded_pairs`.
_pairs: contextvars.ContextVar[list[tuple[Path, Path]] | None]
_pairs = contextvars.ContextVar("pairs", default=None)


@contextlib.contextmanager
def recorded_pairs() -> Iterator[list[tuple[Path, Path]]]:
  """Yields a list; `conv_norm` adds the paths of each pair that can be folded."""
  pairs: list[tuple[Path, Path]] = []
  token = _pairs.set(pairs)
  try:
    yield pairs
  finally:
    _pairs.reset(token)


def conv_norm(
  conv: nn.Module,
  norm: nn.Module,
  x: Float[Array, "b h w c"],
  relu: bool = True,
  shortcut: nn.Module | None = None,
  start: Float[Array, "b _ _ _"] | None = None,
) -> Float[Array, "b _ _ _"]:
  """Returns `relu(shortcut(start, norm(conv(x))))`.

  After `fold_batch_norm`, one call of the convolution computes all of this.

  Args:
    conv: a bound convolution.
    norm: a bound norm.
    x: the input of the convolution.
    relu: whether to apply ReLU at the end.
    shortcut: a bound shortcut with ADDS, which adds `shortcut.project(start)` to the
      output of the norm; None for no shortcut.
    start: the block's input.
  """
  folds = getattr(conv, "FOLDS", False)
  if folds and (pairs := _pairs.get()) is not None:
    pairs.append((conv.path, norm.path))
  # A norm that still has its scale was not folded into this convolution.
  is_folded = getattr(norm, "FOLDED", False) and not norm.has_variable(
    "params", "scale"
  )
  if folds and is_folded:
    residual = None if shortcut is None else shortcut.project(start)
    bias: jax.Array = norm.get_variable("params", "bias")
    joined: jax.Array = conv.then(x, bias, residual, relu)
    return joined
  if shortcut is None:
    return norm_relu(norm, conv(x), relu)
  y = shortcut(start, norm_relu(norm, conv(x), relu=False))
  return nn.relu(y) if relu else y


def norm_relu(
  norm: nn.Module, x: Float[Array, "b h w c"], relu: bool = True
) -> Float[Array, "b h w c"]:
  """Returns `relu(norm(x))`; a norm with ACTIVATES uses its own activation instead.

  Args:
    norm: a bound norm.
    x: feature maps.
    relu: whether an activation follows the norm.
  """
  if getattr(norm, "ACTIVATES", False):
    activated: jax.Array = norm(x, activate=relu)
    return activated
  y: jax.Array = norm(x)
  return nn.relu(y) if relu else y


class SqueezeExcite(nn.Module):
  """Scales each channel by a sigmoid of all channels' means (Hu et al. 2017).

  Attributes:
    reduction: how many times narrower the hidden layer is.
    divisor: the hidden width is rounded to a multiple of this, as in timm.
  """

  reduction: int = 16
  divisor: int = 8

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns the scaled feature maps."""
    channels = x.shape[-1]
    scale = x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)
    multiples = int(channels / self.reduction / self.divisor + 0.5)
    hidden = self.divisor * max(1, multiples)
    scale = nn.relu(nn.Dense(hidden, dtype=x.dtype, name="fc1")(scale))
    return x * nn.sigmoid(nn.Dense(channels, dtype=x.dtype, name="fc2")(scale))


class EfficientChannelAttention(nn.Module):
  """Scales each channel by a sigmoid of its neighbours' means (Wang et al. 2019).

  The means of all channels are convolved along the channels; equation 12 of "ECA-Net"
  gives the size of the kernel.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns the scaled feature maps."""
    channels = x.shape[-1]
    size = max(3, int((math.log2(channels) + 1) / 2) // 2 * 2 + 1)
    # One channel in and out, as in a one-dimensional convolution of Flax.
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    kernel = self.param("kernel", init, (size, 1, 1), jnp.float32)[:, 0, 0]
    means = x.astype(jnp.float32).mean(axis=(1, 2))
    padded = jnp.pad(means, ((0, 0), (size // 2, size // 2)))
    shifted = [padded[:, i : i + channels] for i in range(size)]
    scale = sum(weight * part for weight, part in zip(kernel, shifted, strict=True))
    return x * nn.sigmoid(scale).astype(x.dtype)[:, None, None, :]


def drop_path(
  x: Float[Array, "b h w c"], key: PRNGKeyArray, rate: Float[Array, ""]
) -> Float[Array, "b h w c"]:
  """Stochastic depth: sets random examples to zero and scales up the others.

  The scaling is done in training, so that evaluation needs none, as in torchvision
  ("row" mode). Huang et al. 2016 scale in evaluation instead (eq. 5).

  Args:
    x: the output of a block's convolutions, before the shortcut is added.
    key: PRNG key of the block.
    rate: probability that an example is dropped, in [0, 1).

  Returns:
    [B, H, W, C], same dtype as `x`.
  """
  kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, 1))
  return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)
