"""Heads for a `Backbone` that predict something at every position of an image.

Shapes: B batch, H height, W width, C input channels.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from resnet_jax.models.layers import Conv, ModuleDef, conv_norm
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.old_names import TakesOldNames
from resnet_jax.runtime.arrays import Array, Float, Float32, prepend_axes
from resnet_jax.runtime.errors import UserError


class BiasedConv(Conv):
  """A convolution with a bias, where no norm follows."""

  bias_init: Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b _ _ {self.features}"]:
    bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
    return super().__call__(x) + prepend_axes(bias.astype(self.dtype), x)


# torchvision's initialisation, `kaiming_uniform_(a=1)`.
_pyramid_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
  """Feature pyramid network (Lin et al. 2016, arXiv 1612.03144, section 3).

  A 1x1 convolution gives each feature map `features` channels. Then each map, from the
  coarsest on, is doubled in size and added to the next finer one. Each sum goes through
  a 3x3 convolution.

  Attributes:
    features: channels of each output map.
    extra_level: whether to add a coarser map, with every second pixel of the coarsest.
      Detectors use it for large objects (section 4.1, footnote 2).
    extra_cls: another way to make coarser maps, such as `StridedLevels`; None makes
      none. It is called as `extra_cls(features, dtype=..., name=...)(c, p)` with the
      coarsest map of the backbone and of the pyramid.
    dtype: dtype of the computation and the output.
  """

  features: int = 256
  extra_level: bool = False
  extra_cls: ModuleDef | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, maps: dict[str, Float[Array, "b _ _ _"]]
  ) -> dict[str, Float[Array, "b _ _ {self.features}"]]:
    """Maps {"c2": ..., "c5": ...} to {"p2": ..., "p5": ...}, for the levels given.

    Args:
      maps: all or some feature maps of a `Backbone`. Each is as large as the next finer
        one, or half as large, rounded up.

    Returns:
      Feature maps of the same sizes, and the coarser ones.

    Raises:
      ValueError: a map has another name or size, or there are two ways to make coarser
        maps.
    """
    conv = partial(
      BiasedConv, self.features, kernel_init=_pyramid_init, dtype=self.dtype
    )
    merged, outputs = None, {}
    levels = sorted(int(name[1:]) for name in maps if re.fullmatch(r"c\d+", name))
    if not levels or len(levels) < len(maps):
      raise UserError(f"maps must be named c2, c3 ..., not {sorted(maps)}")
    for level in reversed(levels):
      x = conv(1, name=f"lateral{level}")(maps[f"c{level}"])
      merged = x if merged is None else x + _enlarge(merged, x.shape)
      outputs[f"p{level}"] = conv(3, name=f"output{level}")(merged)
    top, extra = levels[-1], []
    if self.extra_level and self.extra_cls is not None:
      raise UserError(
        "extra_level=True and extra_cls both make coarser maps; choose one"
      )
    if self.extra_level:
      extra = [outputs[f"p{top}"][:, ::2, ::2]]
    elif self.extra_cls is not None:
      make = self.extra_cls(self.features, dtype=self.dtype, name="extra")
      extra = make(maps[f"c{top}"], outputs[f"p{top}"])
    outputs |= {f"p{level}": x for level, x in enumerate(extra, start=top + 1)}
    return dict(sorted(outputs.items()))


class StridedLevels(nn.Module):
  """Two coarser levels for a pyramid, by 3x3 convolutions of stride 2.

  They are P6 and P7 of RetinaNet (Lin et al. 2017, arXiv 1708.02002, section 4,
  footnote 2); ReLU comes between both convolutions.

  Attributes:
    features: channels of each level.
    from_backbone: True makes the first level from the coarsest map of the backbone, as
      in the paper; False makes it from the coarsest map of the pyramid.
    dtype: dtype of the computation and the output.
  """

  LEVELS: ClassVar[int] = 2

  features: int
  from_backbone: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, c: Float[Array, "b h w _"], p: Float[Array, "b h w _"]
  ) -> list[Float[Array, "b _ _ {self.features}"]]:
    """Returns maps of half and of a quarter of the size, rounded up.

    Args:
      c: the coarsest map of the backbone.
      p: the coarsest map of the pyramid.
    """
    conv = partial(
      BiasedConv, self.features, 3, 2, kernel_init=_pyramid_init, dtype=self.dtype
    )
    first = conv(name="conv1")(c if self.from_backbone else p)
    return [first, conv(name="conv2")(nn.relu(first))]


def _enlarge(
  x: Float[Array, "b _ _ c"], shape: Sequence[int]
) -> Float[Array, "b _ _ c"]:
  """Doubles H and W by repeating pixels, if they are smaller than in `shape`."""
  for axis in (1, 2):
    wanted = shape[axis]
    if x.shape[axis] == wanted:
      continue
    if x.shape[axis] != -(-wanted // 2):
      raise UserError(
        f"a map of size {x.shape[axis]} must have the size of the next finer map, "
        f"{wanted}, or half of it, rounded up"
      )
    x = jax.lax.slice_in_dim(x.repeat(2, axis), 0, wanted, axis=axis)
  return x


class FCNHead(TakesOldNames):
  """Predicts the class of each pixel (Long et al. 2014, arXiv 1411.4038).

  The layers are a 3x3 convolution to a quarter of the channels, norm, ReLU, dropout,
  and a 1x1 convolution to the classes. The logits are then enlarged bilinearly. Unlike
  torchvision's `FCNHead`, dropout zeroes whole channels, not single values.

  Attributes:
    num_classes: number of logits per pixel.
    dropout: probability of zeroing a channel of an image in training.
    norm_cls: a norm of `norms.py`.
    dtype: dtype of the computation; logits are float32.
  """

  num_classes: int
  dropout: float = 0.1
  norm_cls: ModuleDef = BatchNorm
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], size: tuple[int, int], train: bool = False
  ) -> Float32[Array, "b {size[0]} {size[1]} {self.num_classes}"]:
    """Returns logits.

    Args:
      x: a feature map of a `Backbone`.
      size: height and width of the image, and so of the result, in pixels.
      train: whether to normalise by the batch's own statistics, which needs
        `mutable=["batch_stats"]`, and apply dropout, which needs
        `rngs={"dropout": key}`.
    """
    norm = self.norm_cls(use_running_average=not train, dtype=self.dtype, name="bn")
    conv = Conv(max(1, x.shape[-1] // 4), 3, dtype=self.dtype, name="conv")
    x = _drop_channels(conv_norm(conv, norm, x), self.dropout, train)
    return _classify(x, self.num_classes, size)


class DeepLabV3Head(nn.Module):
  """Predicts the class of each pixel (Chen et al. 2017, arXiv 1706.05587, section 3).

  Branches look at the same feature map at several scales ("atrous spatial pyramid
  pooling"): a 1x1 convolution, a dilated 3x3 convolution for each rate, and the mean of
  the whole image. A 1x1 convolution joins them. Dropout, a 3x3 convolution and a 1x1
  convolution to the classes follow. Norm and ReLU follow each convolution but the last.
  The logits are then enlarged bilinearly. Unlike torchvision's `DeepLabHead`, dropout
  zeroes whole channels, not single values.

  In training, batch norm normalises the means of the images, one value for each image.
  So each device needs two images or more.

  Attributes:
    num_classes: number of logits per pixel.
    rates: dilation of each dilated branch. (12, 24, 36) is for a feature map of stride
      8, and (6, 12, 18) for one of stride 16 (table 5).
    features: channels of each branch and of the layers after them.
    dropout: probability of zeroing a channel of an image in training.
    norm_cls: a norm of `norms.py`.
    dtype: dtype of the computation; logits are float32.
  """

  num_classes: int
  rates: Sequence[int] = (12, 24, 36)
  features: int = 256
  dropout: float = 0.5
  norm_cls: ModuleDef = BatchNorm
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], size: tuple[int, int], train: bool = False
  ) -> Float32[Array, "b {size[0]} {size[1]} {self.num_classes}"]:
    """Returns logits; the arguments are those of `FCNHead.__call__`."""
    conv_cls = partial(Conv, self.features, dtype=self.dtype)
    norm_cls = partial(self.norm_cls, use_running_average=not train, dtype=self.dtype)

    def convolve(x: Array, kernel_size: int, prefix: str, rate: int = 1) -> jax.Array:
      conv = conv_cls(kernel_size, dilation=rate, name=f"{prefix}conv")
      return conv_norm(conv, norm_cls(name=f"{prefix}bn"), x)

    branches = [convolve(x, 1, "aspp1_")]
    for i, rate in enumerate(self.rates, start=2):
      branches.append(convolve(x, 3, f"aspp{i}_", rate))
    mean = x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)
    pooled = convolve(mean, 1, "pool_")
    branches.append(jnp.broadcast_to(pooled, branches[0].shape))
    x = convolve(jnp.concatenate(branches, axis=-1), 1, "project_")
    x = convolve(_drop_channels(x, self.dropout, train), 3, "")
    return _classify(x, self.num_classes, size)


def _drop_channels(
  x: Float[Array, "b h w c"], rate: float, train: bool
) -> Float[Array, "b h w c"]:
  dropout = nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)
  dropped: jax.Array = dropout(x)
  return dropped


def _classify(
  x: Float[Array, "b _ _ _"], num_classes: int, size: tuple[int, int]
) -> Float32[Array, "b _ _ {num_classes}"]:
  """Returns the logits of a 1x1 convolution, enlarged to the size of the image."""
  x = nn.Dense(num_classes, name="head")(x.astype(jnp.float32))
  shape = x.shape[0], *size, num_classes
  logits: jax.Array = jax.image.resize(x, shape, "bilinear")
  return logits
