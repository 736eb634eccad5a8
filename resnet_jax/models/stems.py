"""The layers before the first stage."""

from typing import ClassVar

from flax import linen as nn

from resnet_jax.models.layers import Conv, ModuleDef, conv_norm, max_pool_3x3
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.old_names import TakesOldNames
from resnet_jax.runtime.arrays import Array, Float


class Stem(TakesOldNames):
  """Base class of the stems.

  Attributes:
    STRIDE: stride of the output, in pixels of the image.
    features: output channels.
    pre_activation: leave out the last norm and ReLU; the first block has them.
  """

  STRIDE: ClassVar[int] = 4

  features: int
  pre_activation: bool = False
  conv_cls: ModuleDef = Conv
  norm_cls: ModuleDef = BatchNorm

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
    return max_pool_3x3(self.last(conv, "bn", x))


class DeepStem(Stem):
  """Three 3x3 convolutions in place of the 7x7 (ResNet-C: He et al. 2018)."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b (h+3)//4 (w+3)//4 {self.features}"]:
    """Maps images to a quarter of their size, rounded up."""
    half = self.features // 2
    x = conv_norm(self.conv_cls(half, 3, 2, name="conv1"), self.norm_cls(name="bn1"), x)
    x = conv_norm(self.conv_cls(half, 3, name="conv2"), self.norm_cls(name="bn2"), x)
    return max_pool_3x3(
      self.last(self.conv_cls(self.features, 3, name="conv3"), "bn3", x)
    )


class CifarStem(Stem):
  """3x3 convolution at full resolution (paper, section 4.2)."""

  STRIDE: ClassVar[int] = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b h w {self.features}"]:
    """Maps images to feature maps of the same size."""
    return self.last(self.conv_cls(self.features, 3, name="conv"), "bn", x)


STEMS = {"imagenet": ImageNetStem, "deep": DeepStem, "cifar": CifarStem}
