"""RetinaNet in PyTorch, with the module names of torchvision.

It is written from the paper and from the names in published files of weights, and
checked once against torchvision 0.28. Its backbone is the `ResNet` of
`torch_resnet.py`.
"""

import torch
import torch_resnet
from torch import nn
from torch.nn.functional import interpolate, relu


class Pyramid(nn.Module):
  def __init__(self, inputs, features, from_backbone):
    super().__init__()
    one = [nn.Sequential(nn.Conv2d(n, features, 1)) for n in inputs]
    three = [nn.Sequential(nn.Conv2d(features, features, 3, 1, 1)) for _ in inputs]
    self.inner_blocks, self.layer_blocks = nn.ModuleList(one), nn.ModuleList(three)
    first = inputs[-1] if from_backbone else features
    self.extra_blocks = nn.Module()
    self.extra_blocks.p6 = nn.Conv2d(first, features, 3, 2, 1)
    self.extra_blocks.p7 = nn.Conv2d(features, features, 3, 2, 1)
    self.from_backbone = from_backbone

  def forward(self, maps):
    merged, levels = None, []
    for x, inner, layer in reversed(
      [*zip(maps, self.inner_blocks, self.layer_blocks, strict=True)]
    ):
      own = inner(x)
      above = 0 if merged is None else interpolate(merged, own.shape[-2:])
      merged = own + above
      levels.insert(0, layer(merged))
    p6 = self.extra_blocks.p6(maps[-1] if self.from_backbone else levels[-1])
    return [*levels, p6, self.extra_blocks.p7(relu(p6))]


class Head(nn.Module):
  def __init__(self, features, numbers, last, norm):
    super().__init__()
    layers = []
    for _ in range(4):
      conv = nn.Conv2d(features, features, 3, 1, 1, bias=not norm)
      norms = [nn.GroupNorm(32, features)] if norm else []
      layers.append(nn.Sequential(conv, *norms, nn.ReLU()))
    self.conv, self.last, self.numbers = nn.Sequential(*layers), last, numbers
    setattr(self, last, nn.Conv2d(features, 9 * numbers, 3, 1, 1))

  def forward(self, levels):
    outputs = []
    for x in levels:
      y = getattr(self, self.last)(self.conv(x))
      outputs.append(y.permute(0, 2, 3, 1).reshape(len(y), -1, self.numbers))
    return torch.cat(outputs, 1)


class RetinaNet(nn.Module):
  """One block a stage; `v2` is the second version of torchvision."""

  def __init__(self, num_classes, width, features, v2):
    super().__init__()
    self.backbone = nn.Module()
    body = torch_resnet.ResNet((1, 1, 1, 1), bottleneck=True, features=width)
    del body.fc
    body.head = lambda x: x
    body.preact, self.stages = False, body.plain_stages
    self.backbone.body = body
    inputs = [4 * width * 2**i for i in (1, 2, 3)]
    self.backbone.fpn = Pyramid(inputs, features, v2)
    self.head = nn.Module()
    self.head.classification_head = Head(features, num_classes, "cls_logits", v2)
    self.head.regression_head = Head(features, 4, "bbox_reg", v2)
    for module in body.modules():
      if isinstance(module, nn.BatchNorm2d) and not v2:
        module.eps = 0.0

  def forward(self, images):
    """Maps [B, 3, H, W] to logits [B, A, K] and deltas [B, A, 4]."""
    body = self.backbone.body
    x = body.bn1(body.conv1(images)).relu_()
    x, maps = nn.functional.max_pool2d(x, 3, 2, 1), []
    for stage in self.stages:
      x = stage(x)
      maps.append(x)
    levels = self.backbone.fpn(maps[1:])
    return self.head.classification_head(levels), self.head.regression_head(levels)
