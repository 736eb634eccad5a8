"""torchvision's networks for semantic segmentation, with its module names.

`test_segmentation.py` compares our networks with these. The backbone is the network of
`torch_resnet.py`, whose last two stages are dilated here. Images are NCHW.
"""

import torch
from torch import nn
from torch.nn.functional import interpolate
from torch_resnet import ResNet, conv


def conv_norm_relu(inputs, outputs, kernel, dilation=1):
  """Returns the three layers, which keep the size."""
  layer = conv(inputs, outputs, kernel)
  dilate(layer, dilation)
  return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def dilate(layer, dilation):
  """Dilates a convolution at stride 1, in place."""
  if layer.kernel_size == (3, 3):
    layer.dilation = layer.padding = (dilation, dilation)


class Mean(nn.Sequential):
  """The layers applied to the mean of the image, and repeated at every pixel."""

  def forward(self, x):
    """Maps [B, C, H, W] to [B, outputs, H, W]."""
    y = super().forward(x)
    return interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
  """Atrous spatial pyramid pooling."""

  def __init__(self, inputs, outputs, rates=(12, 24, 36)):
    super().__init__()
    branches = [nn.Sequential(*conv_norm_relu(inputs, outputs, 1))]
    for rate in rates:
      branches.append(nn.Sequential(*conv_norm_relu(inputs, outputs, 3, rate)))
    pool = nn.AdaptiveAvgPool2d(1)
    branches.append(Mean(pool, *conv_norm_relu(inputs, outputs, 1)))
    self.convs = nn.ModuleList(branches)
    joined = conv_norm_relu(len(branches) * outputs, outputs, 1)
    self.project = nn.Sequential(*joined, nn.Dropout(0.5))

  def forward(self, x):
    """Maps [B, C, H, W] to [B, outputs, H, W]."""
    return self.project(torch.cat([branch(x) for branch in self.convs], 1))


def fcn_head(inputs, classes):
  """Returns the layers of FCNHead."""
  width = inputs // 4
  layers = conv_norm_relu(inputs, width, 3)
  return nn.Sequential(*layers, nn.Dropout(0.1), nn.Conv2d(width, classes, 1))


def deeplab_head(inputs, classes):
  """Returns the layers of DeepLabHead."""
  layers = conv_norm_relu(256, 256, 3)
  return nn.Sequential(Pyramid(inputs, 256), *layers, nn.Conv2d(256, classes, 1))


class Segmenter(nn.Module):
  """A network of bottleneck blocks with a head on its last stage.

  The auxiliary head is on the stage before.
  """

  def __init__(self, sizes, head, classes, aux=True):
    super().__init__()
    self.backbone = ResNet(sizes, bottleneck=True)
    for stage, dilations in (("layer3", (1, 2)), ("layer4", (2, 4))):
      for i, block in enumerate(getattr(self.backbone, stage)):
        for layer in block.modules():
          if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            dilate(layer, dilations[min(i, 1)])
    # Without its own head, the network returns the maps and the mean of the last one.
    self.backbone.fc = nn.Identity()
    self.classifier = head(2048, classes)
    self.aux_classifier = fcn_head(1024, classes) if aux else None

  def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Maps [B, 3, H, W] to logits, [B, classes, H, W] each."""
    maps, _ = self.backbone(images)
    logits = {"out": self.classifier(maps[-1])}
    if self.aux_classifier is not None:
      logits["aux"] = self.aux_classifier(maps[-2])
    size = images.shape[-2:]
    return {
      key: interpolate(x, size, mode="bilinear", align_corners=False)
      for key, x in logits.items()
    }
