"""The names in PyTorch of each parameter and statistic of a network.

They are torchvision's names. Parts that only timm has (squeeze-excite, deep stems,
pooled shortcuts, pre-activation) have timm's names. The rest has names of our own.
"""

import re
from collections.abc import Collection
from functools import partial
from typing import Any

import jax

from resnet_jax.models.detection import RetinaNet
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.segmentation import Segmenter
from resnet_jax.weights.foreign_names import BODY

Network = ResNet | Segmenter | RetinaNet
Path = tuple[str, ...]

# The name of the last part of a path.
LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
  # `v` is of EvoNorm, and `tau` of filter response normalisation.
  "v": "v",
  "tau": "tau",
}
_STEM = {
  "conv": "conv1",
  "bn": "bn1",
  # ResNet-RS has a convolution in place of the max-pool.
  "pool_conv": "maxpool.0",
  "pool_bn": "maxpool.1",
}
# timm's deep stem numbers its convolutions, norms and ReLUs in one series, except the
# last norm.
_DEEP_STEM = {
  "conv1": "conv1.0",
  "bn1": "conv1.1",
  "conv2": "conv1.3",
  "bn2": "conv1.4",
  "conv3": "conv1.6",
  "bn3": "bn1",
}


# The parts of a segmentation network by their names in torchvision.
_PARTS = {"backbone": "backbone", "head": "classifier", "aux_head": "aux_classifier"}
# Those of a detector.
_BRANCHES = {
  "classes": ("classification_head", "cls_logits"),
  "boxes": ("regression_head", "bbox_reg"),
}
_FPN = {"lateral": "inner_blocks", "output": "layer_blocks"}
_EXTRA = {"conv1": "p6", "conv2": "p7"}


def torch_names(model: Network, variables: Any) -> dict[str, Path]:
  """Returns the path of every leaf of `variables` by its name in PyTorch.

  Args:
    model: the network; its fields decide between torchvision's and timm's names.
    variables: {"params": ..., "batch_stats": ...} in the named layout of
      `scan_layout.py`; shapes without values are enough.
  """
  if isinstance(model, Segmenter):
    return _segmenter_names(model, variables)
  if isinstance(model, RetinaNet):
    return _detector_names(model, variables)
  name_module = _preact_module if model.pre_activation else _module
  if not model.pre_activation and _pools(model):
    name_module = partial(_module, pooled=True)
  names = {}
  for path, _ in jax.tree_util.tree_leaves_with_path(variables):
    _collection, *module, leaf = keys = tuple(key.key for key in path)
    names[f"{name_module(tuple(module))}.{LEAVES[leaf]}"] = keys
  return names


def _segmenter_names(model: Segmenter, variables: Any) -> dict[str, Path]:
  names = {}
  for part, prefix in _PARTS.items():
    inside = _part(variables, part)
    if part == "backbone":
      found = torch_names(model.net, inside)
    else:
      found = _head_names(inside)
    for name, (collection, *rest) in found.items():
      names[f"{prefix}.{name}"] = (collection, part, *rest)
  return names


def _part(variables: Any, name: str) -> Any:
  return {key: tree[name] for key, tree in variables.items() if name in tree}


def _head_names(variables: Any) -> dict[str, Path]:
  """Returns the paths of a head for every pixel; see `torch_names`."""
  layers = {key for tree in variables.values() for key in tree}
  names = {}
  for path, _ in jax.tree_util.tree_leaves_with_path(variables):
    _collection, *module, leaf = keys = tuple(key.key for key in path)
    names[f"{_head_layer('.'.join(module), layers)}.{LEAVES[leaf]}"] = keys
  return names


def _head_layer(name: str, layers: Collection[str]) -> str:
  """Returns the name of a layer of `FCNHead` or `DeepLabV3Head` among all its layers.

  torchvision numbers the layers of a head, also those without parameters.
  """
  is_deeplab = "project_conv" in layers
  if match := re.fullmatch(r"aspp(\d+)_(conv|bn)", name):
    return f"0.convs.{int(match[1]) - 1}.{('conv', 'bn').index(match[2])}"
  known = {"conv": "0", "bn": "1", "head": "4"}
  if is_deeplab:
    branches = sum(bool(re.fullmatch(r"aspp\d+_conv", layer)) for layer in layers)
    pool = f"0.convs.{branches}"
    known = {
      **{"pool_conv": f"{pool}.1", "pool_bn": f"{pool}.2"},
      **{"project_conv": "0.project.0", "project_bn": "0.project.1"},
      **{"conv": "1", "bn": "2", "head": "4"},
    }
  return known.get(name, name)


def _detector_names(model: RetinaNet, variables: Any) -> dict[str, Path]:
  body = torch_names(model.net, _part(variables, "backbone"))
  names = {
    BODY + name: (collection, "backbone", *rest)
    for name, (collection, *rest) in body.items()
  }
  params = variables["params"]
  finest = min(_number(name) for name in params["fpn"] if name != "extra")
  for path, _ in jax.tree_util.tree_leaves_with_path(variables):
    _collection, part, *module, leaf = keys = tuple(key.key for key in path)
    if part == "fpn":
      name = f"backbone.fpn.{_pyramid_layer(module, finest)}"
    elif part == "head":
      branch, layer = module
      # Without a norm, the bias after a convolution is the convolution's own.
      has_norm = "scale" in params["head"][branch].get(layer, {})
      name = f"head.{_branch_layer(branch, layer, has_norm)}"
    else:
      continue
    names[f"{name}.{LEAVES[leaf]}"] = keys
  return names


def _pyramid_layer(module: list[str], finest: int) -> str:
  if module[0] == "extra":
    return f"extra_blocks.{_EXTRA[module[1]]}"
  kind = module[0].rstrip("0123456789")
  return f"{_FPN[kind]}.{_number(module[0]) - finest}.0"


def _branch_layer(branch: str, layer: str, has_norm: bool) -> str:
  head, output = _BRANCHES[branch]
  if layer == "output":
    return f"{head}.{output}"
  return f"{head}.conv.{_number(layer) - 1}.{int(has_norm)}"


def _pools(model: ResNet) -> bool:
  """Whether an average pool comes before the shortcuts' convolutions."""
  pools: bool = getattr(model.shortcut_cls, "keywords", {}).get("pool", False)
  return pools


def _module(path: Path, pooled: bool = False) -> str:
  match path:
    case ("stem", name):
      return (_STEM | _DEEP_STEM)[name]
    case ("head",):
      return "fc"
    case (stage, block, "shortcut", "gate"):
      rest = "gate"
    case (stage, block, "shortcut", name):
      rest = f"downsample.{('conv', 'bn').index(name) + pooled}"
    case (stage, block, "se"):  # The kernel of efficient channel attention.
      rest = "se.conv"
    case (stage, block, *rest):
      rest = ".".join(rest)
  return f"layer{_number(stage)}.{_number(block) - 1}.{rest}"


def _preact_module(path: Path) -> str:
  """Returns the name in timm's resnetv2."""
  match path:
    case ("head",):
      return "head.fc"
    case ("stem", *_) | ("bn",):
      return ".".join(path).replace("bn", "norm")
    case (stage, block, "shortcut", "gate"):
      rest = "gate"
    case (stage, block, "shortcut", name):
      rest = f"downsample.{name}"
    case (stage, block, *rest):
      rest = ".".join(rest).replace("bn", "norm")
  return f"stages.{_number(stage) - 1}.blocks.{_number(block) - 1}.{rest}"


def _number(name: str) -> int:
  return int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
