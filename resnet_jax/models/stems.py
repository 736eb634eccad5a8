"""The layers before the first stage."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from flax import linen as nn

from resnet_jax.models.layers import Conv, ModuleDef, conv_norm
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.old_names import TakesOldNames
from resnet_jax.models.pooling import average_pool, blur_pool, max_pool_3x3
from resnet_jax.runtime.arrays import Array, Float, prepend_axes


def max_pool(stem: "Stem", x: Array) -> Array:
  """Max-pools 3x3 windows at stride 2 (paper, table 1)."""
  return max_pool_3x3(x)


def max_pool_zeros(stem: "Stem", x: Array) -> Array:
  """Max-pools with zeros outside of the image, as BiT does (Kolesnikov et al. 2019)."""
  return max_pool_3x3(x, border=0.0)


def add_bias_max_pool_zeros(stem: "Stem", x: Array) -> Array:
  """Adds a bias, then max-pools with zeros outside of the image, as Keras's V2 does."""
  bias: Array = stem.param("bias", nn.initializers.zeros, (stem.features,))
  return max_pool_3x3(x + prepend_axes(bias.astype(x.dtype), x), border=0.0)


def max_blur_pool(stem: "Stem", x: Array) -> Array:
  """Max-pools at stride 1, then blurs at stride 2 (Zhang 2019, section 3.2)."""
  return blur_pool(max_pool_3x3(x, stride=1), 2)


def even_average_pool(stem: "Stem", x: Array) -> Array:
  """Averages 2x2 pixels; leaves out a last odd row and column, as timm does."""
  height, width = (size // 2 * 2 for size in x.shape[1:3])
  return average_pool(x[:, :height, :width], 2)


def strided_conv(stem: "Stem", x: Array) -> Array:
  """Applies a 3x3 convolution at stride 2 (ResNet-RS: Bello et al. 2021, figure 4)."""
  conv = stem.conv_cls(stem.features, 3, 2, name="pool_conv")
  return conv_norm(conv, stem.norm_cls(name="pool_bn"), x)


class Stem(TakesOldNames):
  """Base class of the stems.

  Attributes:
    STRIDE: stride of the output, in pixels of the image.
    features: output channels.
    pre_activation: leave out the last norm and ReLU; the first block has them.
    pool: the last layer, called as `pool(stem, x)`; see the functions of this file.
  """

  STRIDE: ClassVar[int] = 4

  features: int
  pre_activation: bool = False
  conv_cls: ModuleDef = Conv
  norm_cls: ModuleDef = BatchNorm
  pool: Callable[["Stem", Array], Array] = max_pool

  def last(
    self, conv: nn.Module, norm_name: str, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b _ _ {self.features}"]:
    """Applies the last convolution; then norm and ReLU, unless the first block does."""
    if self.pre_activation:
      y: Array = conv(x)
      return y
    return conv_norm(conv, self.norm_cls(name=norm_name), x)


class ImageNetStem(Stem):
  """7x7 convolution at stride 2, then a 3x3 max-pool at stride 2 (paper, table 1)."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b (h+3)//4 (w+3)//4 {self.features}"]:
    """Maps images to a quarter of their size, rounded up."""
    conv = self.conv_cls(self.features, 7, 2, name="conv")
    return self.pool(self, self.last(conv, "bn", x))


class DeepStem(Stem):
  """Three 3x3 convolutions in place of the 7x7 (ResNet-C: He et al. 2018).

  Attributes:
    WIDTHS: channels of the first two convolutions, as fractions of `features`.
  """

  WIDTHS: ClassVar[tuple[float, float]] = (1 / 2, 1 / 2)

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b (h+3)//4 (w+3)//4 {self.features}"]:
    """Maps images to a quarter of their size, rounded up."""
    first, second = (int(self.features * width) for width in self.WIDTHS)
    conv1 = self.conv_cls(first, 3, 2, name="conv1")
    x = conv_norm(conv1, self.norm_cls(name="bn1"), x)
    x = conv_norm(self.conv_cls(second, 3, name="conv2"), self.norm_cls(name="bn2"), x)
    conv3 = self.conv_cls(self.features, 3, name="conv3")
    return self.pool(self, self.last(conv3, "bn3", x))


class TieredStem(DeepStem):
  """A deep stem of 24, 32 and 64 channels (timm's networks with the ending "t")."""

  WIDTHS: ClassVar[tuple[float, float]] = (3 / 8, 1 / 2)


class CifarStem(Stem):
  """3x3 convolution at full resolution (paper, section 4.2)."""

  STRIDE: ClassVar[int] = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b h w {self.features}"]:
    """Maps images to feature maps of the same size."""
    return self.last(self.conv_cls(self.features, 3, name="conv"), "bn", x)


STEMS = {
  "imagenet": ImageNetStem,
  "deep": DeepStem,
  "tiered": TieredStem,
  "cifar": CifarStem,
  # Stems with another last layer.
  "imagenet_average": partial(ImageNetStem, pool=even_average_pool),
  "deep_average": partial(DeepStem, pool=even_average_pool),
  "imagenet_blur": partial(ImageNetStem, pool=max_blur_pool),
  "deep_blur": partial(DeepStem, pool=max_blur_pool),
  "deep_conv": partial(DeepStem, pool=strided_conv),
  "imagenet_zeros": partial(ImageNetStem, pool=max_pool_zeros),
  "imagenet_bias_zeros": partial(ImageNetStem, pool=add_bias_max_pool_zeros),
}
