"""Residual networks in PyTorch, with the module names of torchvision and timm.

`test_parity.py` compares our networks with these. They are written independently of
`resnet_jax`, from the same papers and from the names in published files of weights.

Shapes: B batch, H height, W width, C channels; images are NCHW.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import max_pool2d, pad


def conv(inputs, outputs, kernel, stride=1, groups=1):
  """Returns a convolution without bias that keeps the size at stride 1."""
  return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, 1, groups, bias=False)


class PadShortcut(nn.Module):
  """Option A for a doubling of the channels; has no parameters."""

  def forward(self, x):
    """Maps [B, C, H, W] to [B, 2 C, ceil(H / 2), ceil(W / 2)]."""
    new = x.shape[1] // 2
    return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new, new))


class SqueezeExcite(nn.Module):
  """timm's version, which rounds the hidden layer to a multiple of 8."""

  def __init__(self, channels):
    super().__init__()
    hidden = max(8, (channels // 16 + 4) // 8 * 8)
    self.fc1 = nn.Conv2d(channels, hidden, 1)
    self.fc2 = nn.Conv2d(hidden, channels, 1)

  def forward(self, x):
    """Maps [B, C, H, W] to the same shape."""
    mean = x.mean((2, 3), keepdim=True)
    return x * self.fc2(self.fc1(mean).relu_()).sigmoid()


class Block(nn.Module):
  """Convolutions of 3x3 and 3x3, or of 1x1, 3x3 and 1x1, and a shortcut."""

  def __init__(self, inputs, features, stride, options):
    super().__init__()
    self.preact, groups = options["preact"], options["groups"]
    outputs, width, kernels, strides = features, features, (3, 3), (stride, 1)
    if options["bottleneck"]:
      outputs, width = 4 * features, features * options["base_width"] // 64 * groups
      kernels = (1, 3, 1)
      strides = (stride, 1, 1) if options["stride_on_1x1"] else (1, stride, 1)
    channels = (inputs, *[width] * (len(kernels) - 1), outputs)
    self.pairs = []
    for i, kernel in enumerate(kernels):
      groups_here = groups if kernel == 3 else 1
      convolve = conv(channels[i], channels[i + 1], kernel, strides[i], groups_here)
      norm = nn.BatchNorm2d(channels[i if self.preact else i + 1])
      self.add_module(f"conv{i + 1}", convolve)
      self.add_module(f"{'norm' if self.preact else 'bn'}{i + 1}", norm)
      self.pairs.append((convolve, norm))
    self.se = SqueezeExcite(outputs) if options["se"] else nn.Identity()
    self.downsample = None
    if stride > 1 or inputs != outputs:
      self.downsample = self.shortcut(inputs, outputs, stride, options["shortcut"])

  def shortcut(self, inputs, outputs, stride, option):
    """Returns the module that changes the shape of the block's input."""
    if option == "A":
      return PadShortcut()
    if self.preact:
      return nn.Sequential(OrderedDict(conv=conv(inputs, outputs, 1, stride)))
    layers = [conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)]
    if option == "D":
      pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
      layers[0] = conv(inputs, outputs, 1)
      layers.insert(0, pool if stride > 1 else nn.Identity())
    return nn.Sequential(*layers)

  def forward(self, x):
    """Maps [B, C, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
    y, start = x, x
    for i, (convolve, norm) in enumerate(self.pairs):
      if self.preact:
        y = norm(y).relu_()
        start = y if i == 0 and self.downsample is not None else start
        y = convolve(y)
      else:
        y = norm(convolve(y if i == 0 else y.relu_()))
    y = self.se(y) + (start if self.downsample is None else self.downsample(start))
    return y if self.preact else y.relu_()


OPTIONS = {
  "features": 64,
  "stem": "imagenet",  # or "cifar", "deep"
  "bottleneck": False,
  "groups": 1,
  "base_width": 64,
  "stride_on_1x1": False,  # True as in the paper, False as in torchvision.
  "shortcut": "B",  # or "A", "D"
  "se": False,
  "preact": False,  # True is timm's resnetv2.
}


class ResNet(nn.Module):
  """A network with the given options; `OPTIONS` has their defaults."""

  def __init__(self, sizes, num_classes=10, **options):
    super().__init__()
    options = OPTIONS | options
    features, self.preact = options["features"], options["preact"]
    self.small = options["stem"] == "cifar"
    stem = conv(3, features, 3) if self.small else conv(3, features, 7, 2)
    if options["stem"] == "deep":
      half = features // 2
      stem = nn.Sequential(
        *(conv(3, half, 3, 2), nn.BatchNorm2d(half), nn.ReLU()),
        *(conv(half, half, 3), nn.BatchNorm2d(half), nn.ReLU()),
        conv(half, features, 3),
      )
    stages, inputs = [], features
    for i, size in enumerate(sizes):
      blocks = []
      for j in range(size):
        stride = 2 if i > 0 and j == 0 else 1
        blocks.append(Block(inputs, features * 2**i, stride, options))
        inputs = features * 2**i * (4 if options["bottleneck"] else 1)
      stages.append(nn.Sequential(*blocks))
    self.plain_stages = stages  # A list registers no modules.
    if self.preact:
      self.stem = nn.Sequential(OrderedDict(conv=stem))
      named = [nn.Sequential(OrderedDict(blocks=stage)) for stage in stages]
      self.stages = nn.Sequential(*named)
      self.norm = nn.BatchNorm2d(inputs)
      self.head = nn.Sequential(OrderedDict(fc=nn.Conv2d(inputs, num_classes, 1)))
    else:
      self.conv1, self.bn1 = stem, nn.BatchNorm2d(features)
      for i, stage in enumerate(stages):
        self.add_module(f"layer{i + 1}", stage)
      self.fc = nn.Linear(inputs, num_classes)

  def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Maps [B, 3, H, W] to each stage's output and logits [B, num_classes]."""
    x = self.stem(x) if self.preact else self.bn1(self.conv1(x)).relu_()
    x = x if self.small else max_pool2d(x, 3, 2, 1)
    outputs = []
    for stage in self.plain_stages:
      x = stage(x)
      outputs.append(x)
    x = self.norm(x).relu_() if self.preact else x
    x = x.mean((2, 3), keepdim=True)
    return outputs, self.head(x).flatten(1) if self.preact else self.fc(x.flatten(1))


@torch.no_grad()
def draw(net: nn.Module) -> nn.Module:
  """Draws weights and statistics; small last convolutions keep activations small."""
  for module in net.modules():
    if isinstance(module, nn.BatchNorm2d):
      for tensor in (module.weight, module.running_var):
        tensor.uniform_(0.5, 1.5)
      for tensor in (module.bias, module.running_mean):
        tensor.normal_(0, 0.1)
    elif isinstance(module, nn.Conv2d):
      nn.init.kaiming_normal_(module.weight)
  for module in net.modules():
    if isinstance(module, Block):
      module.pairs[-1][0].weight.mul_(0.2)
  return net
