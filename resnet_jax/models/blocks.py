"""Residual blocks: two 3x3 convolutions, or 1x1, 3x3, 1x1, around a shortcut.

Shapes: B batch, H height, W width, C input channels.
"""

import jax
from flax import linen as nn

from resnet_jax.models.layers import BatchNorm, Conv, ModuleDef, ProjectionShortcut


class BasicBlock(nn.Module):
  """Two 3x3 convolutions plus a shortcut (He et al. 2015, figure 2).

  Attributes:
    features: channels of both convolutions and of the output.
    stride: of the first convolution.
    shortcut: what is added to the convolutions' result.
    zero_init: start the last batch norm's scale at 0, so that the block begins as
      its shortcut (Goyal et al. 2017, section 5.1).
  """

  features: int
  stride: int = 1
  zero_init: bool = False
  conv: ModuleDef = Conv
  norm: ModuleDef = BatchNorm
  shortcut: ModuleDef = ProjectionShortcut

  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
    y = self.conv(self.features, 3, self.stride, name="conv1")(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(self.features, 3, name="conv2")(y)
    y = self.norm(scale_init=_last_scale_init(self.zero_init), name="bn2")(y)
    return nn.relu(y + self.shortcut(self.features, self.stride, name="shortcut")(x))


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions plus a shortcut (He et al. 2015, figure 5).

  The stride is on the 3x3 convolution, as in torchvision ("v1.5").

  Attributes:
    features: channels of the first two convolutions; the output has 4 times as many.
    stride: of the 3x3 convolution.
    shortcut: what is added to the convolutions' result.
    zero_init: as in `BasicBlock`.
  """

  features: int
  stride: int = 1
  zero_init: bool = False
  conv: ModuleDef = Conv
  norm: ModuleDef = BatchNorm
  shortcut: ModuleDef = ProjectionShortcut

  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), 4 features]."""
    y = nn.relu(self.norm(name="bn1")(self.conv(self.features, 1, name="conv1")(x)))
    y = self.conv(self.features, 3, self.stride, name="conv2")(y)
    y = nn.relu(self.norm(name="bn2")(y))
    features = self.features * self.expansion
    y = self.conv(features, 1, name="conv3")(y)
    y = self.norm(scale_init=_last_scale_init(self.zero_init), name="bn3")(y)
    return nn.relu(y + self.shortcut(features, self.stride, name="shortcut")(x))


def _last_scale_init(zero: bool):
  return nn.initializers.zeros if zero else nn.initializers.ones
