"""A residual network without its head.

Shapes: B batch, H height, W width, C input channels.
"""

from collections.abc import Sequence
from typing import TypeVar

from flax import linen as nn

from resnet_jax.config.allowed import check_choice
from resnet_jax.models.resnet import ResNet, as_resnet
from resnet_jax.runtime.arrays import AnyArray, Array, Float

Value = TypeVar("Value")


class Backbone(nn.Module):
  """A residual network without its head, for detection, segmentation and the like.

  It takes the variables of the full network unchanged, such as those of
  `weights.load(path, net)`, and ignores the head's parameters. If a module calls both
  the backbone and `net`, the two do not share parameters.

  Attributes:
    net: the network, such as `create_model("resnet50")`.
    output_stride: stride of the coarsest feature map, in pixels of the image. Dilation
      of later layers replaces the strides beyond it, so that the same weights see the
      same pixels at more positions (Chen et al. 2017, "Rethinking atrous convolution",
      section 3.1). It is the stride of a stage: 4, 8, 16 or 32 for ImageNet networks,
      1, 2 or 4 for CIFAR networks. None keeps all strides.
    maps: names of the feature maps to return, such as ("c3", "c5"); () returns all.
  """

  net: ResNet
  output_stride: int | None = None
  maps: Sequence[str] = ()

  @property
  def strides(self) -> dict[str, int]:
    """Stride of each feature map that a call returns, in pixels of the image."""
    strides = as_resnet(self.net, "backbones").stage_strides
    most = self.output_stride or strides[-1]
    return self._chosen([min(stride, most) for stride in strides])

  @property
  def features(self) -> dict[str, int]:
    """Channels of each feature map that a call returns."""
    return self._chosen(as_resnet(self.net, "backbones").stage_features)

  def _chosen(self, values: Sequence[Value]) -> dict[str, Value]:
    """Returns the values of the chosen stages by name, in the order of the stages."""
    named = {f"c{i}": value for i, value in enumerate(values, start=2)}
    for name in self.maps:
      check_choice("maps", name, named)
    return {name: named[name] for name in named if name in (self.maps or named)}

  @nn.compact
  def __call__(
    self, images: Float[AnyArray, "b h w c"], train: bool = False
  ) -> dict[str, Float[Array, "b _ _ _"]]:
    """Returns the last feature map of each stage, or of the stages in `maps`.

    Args:
      images: normalised.
      train: see `ResNet.__call__`.

    Returns:
      "c2", "c3", "c4" and, for networks with four stages, "c5": [B, ceil(H / stride),
      ceil(W / stride), features], in the dtype of the network. `strides` and `features`
      give the numbers, such as 4, 8, 16, 32 and 256, 512, 1024, 2048 for ResNet-50. All
      maps are after ReLU; in pre-activation networks, only the last one is.

    Raises:
      UserError: no stage has `output_stride`, a name in `maps` is unknown, or `net` is
        not a `ResNet`.
    """
    # `net` may be a submodule of another module. The clone belongs to this one.
    net = as_resnet(self.net, "backbones").clone(parent=self, name=None)
    nn.share_scope(self, net)
    outputs = net.stages(images, train, self.output_stride)
    return self._chosen(outputs)
