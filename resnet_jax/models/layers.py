"""The layers of a residual network: convolution, pooling, squeeze-excite.

Shapes: B batch, H height, W width, C input channels. Images are NHWC. Parameters
are float32; `dtype` is the dtype of a layer's computation and output.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from resnet_jax.kernels import conv2d
from resnet_jax.kernels.conv import conv2d_then
from resnet_jax.runtime.arrays import Array, Float, PRNGKeyArray
from resnet_jax.runtime.errors import UserError

ModuleDef = Callable[..., Any]
Path = tuple[str, ...]  # The names that lead to a module of a network.

# He et al. 2015, "Delving deep into rectifiers", eq. 14 (fan-out), as torchvision.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
  """A square convolution without bias; the batch norm after it has a bias.

  Attributes:
    features: output channels.
    kernel_size: height and width of the kernel, in pixels.
    stride: step along both spatial axes.
    padding: number of zeros on each side, which `dilation` multiplies; None keeps the
      size at stride 1 (odd kernels only).
    groups: number of groups of channels (Xie et al. 2016, "ResNeXt"). It divides the
      input and the output channels.
    dilation: distance between the pixels that a kernel sees; > 1 needs `stride` 1.
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

  # Whether the kernel may be multiplied by a scale of the output, and `then` may
  # replace `__call__`. False for a subclass that overrides `__call__` and not FOLDS.
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
    return conv2d_then(x, kernel, bias, residual, **self._settings(), relu=relu)

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
    shortcut: a bound shortcut that adds `project(start)`; None for no shortcut.
    start: the block's input.
  """
  folds = getattr(conv, "FOLDS", False)
  if folds and (pairs := _pairs.get()) is not None:
    pairs.append((conv.path, norm.path))
  # A norm that kept its scale was not folded.
  is_folded = getattr(norm, "FOLDED", False) and not norm.has_variable(
    "params", "scale"
  )
  if folds and is_folded:
    residual = None if shortcut is None else shortcut.project(start)
    bias: jax.Array = norm.get_variable("params", "bias")
    joined: jax.Array = conv.then(x, bias, residual, relu)
    return joined
  y = norm(conv(x))
  if shortcut is not None:
    y = shortcut(start, y)
  return nn.relu(y) if relu else y


def max_pool_3x3(
  x: Float[Array, "b h w c"],
) -> Float[Array, "b (h+1)//2 (w+1)//2 c"]:
  """Max-pools 3x3 windows at stride 2, with a border of -inf.

  This is the maximum of nine shifted images, so the gradient is elementwise. The
  gradient of `nn.max_pool` is a select-and-scatter, which is slow on a CPU.

  Args:
    x: images or feature maps.

  Returns:
    Feature maps of half the size, rounded up; same dtype as `x`.
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
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns the scaled feature maps."""
    channels = x.shape[-1]
    scale = x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)
    hidden = max(1, channels // self.reduction)
    scale = nn.relu(nn.Dense(hidden, dtype=x.dtype, name="fc1")(scale))
    return x * nn.sigmoid(nn.Dense(channels, dtype=x.dtype, name="fc2")(scale))


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
