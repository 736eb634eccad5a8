"""Loads torchvision's weights of detectors."""

import re
from pathlib import Path
from typing import Any

import jax

from resnet_jax.models.anchors import ANCHORS_PER_POSITION
from resnet_jax.models.detection import DETECTORS, RetinaNet, create_detector
from resnet_jax.models.resnet import as_resnet
from resnet_jax.models.variables import Variables, abstract_variables
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.weights.foreign_names import BODY, to_detector
from resnet_jax.weights.from_torch import find_problems, to_variables
from resnet_jax.weights.tensors import (
  COUNTERS,
  Tensors,
  at,
  channels,
  few,
  has_shape,
  read_tensors,
)
from resnet_jax.weights.torch_names import LEAVES, torch_names

Keys = tuple[str, ...]
_HEADS = {
  "classes": ("classification_head", "cls_logits"),
  "boxes": ("regression_head", "bbox_reg"),
}
_FPN = {"lateral": "inner_blocks", "output": "layer_blocks"}
_EXTRA = {"conv1": "p6", "conv2": "p7"}
# The parameters that depend on the number of classes.
_LAST = "head.classification_head.cls_logits"


def load_detector(
  path: Path, model: RetinaNet, head: bool, ema: bool | None, new_head: bool
) -> Variables:
  """Reads trained weights for a detector; see `weights.load`.

  Args:
    path: a file that `location.find` returned.
    model: the detector.
    head: whether to read the last layer for the classes.
    ema: as in `weights.load`.
    new_head: make new parameters for that layer.
  """
  as_resnet(model.net, "detectors")
  tensors, problems = read_tensors(path, ema, translate=to_detector)
  all_tensors = dict(tensors)
  wanted, names = _wanted_by(model, tensors)
  if not head or new_head:
    for name in [name for name in names if name.startswith(_LAST)]:
      names.pop(name)
      tensors.pop(name, None)
  problems = [*few(problems), *find_problems(tensors, wanted, names)]
  if problems:
    problems += find_advice(all_tensors, model)
    raise UserError(
      f"{path} does not fit the model: {'; '.join(problems)}. It must be a state dict "
      "of floating-point tensors for this detector and number of classes"
    )
  variables = to_variables(tensors, wanted, names)
  if new_head:
    warn(f"the last layer for {model.num_classes} classes is new, and not trained")
    *parents, layer = model.HEAD
    new = model.init_head(jax.random.key(0))
    at(variables["params"], tuple(parents))[layer] = new
  return variables


def detector_names(model: RetinaNet, variables: Any) -> dict[str, Keys]:
  """Returns the path of every leaf of `variables` by its name in torchvision.

  Args:
    model: the detector.
    variables: as for `torch_names`.
  """
  body = {
    key: tree["backbone"] for key, tree in variables.items() if "backbone" in tree
  }
  names = {
    BODY + name: (collection, "backbone", *rest)
    for name, (collection, *rest) in torch_names(model.net, body).items()
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
      name = f"head.{_head_layer(branch, layer, has_norm)}"
    else:
      continue
    names[f"{name}.{LEAVES[leaf]}"] = keys
  return names


def _pyramid_layer(module: list[str], finest: int) -> str:
  if module[0] == "extra":
    return f"extra_blocks.{_EXTRA[module[1]]}"
  kind = module[0].rstrip("0123456789")
  return f"{_FPN[kind]}.{_number(module[0]) - finest}.0"


def _head_layer(branch: str, layer: str, has_norm: bool) -> str:
  head, output = _HEADS[branch]
  if layer == "output":
    return f"{head}.{output}"
  return f"{head}.conv.{_number(layer) - 1}.{int(has_norm)}"


def _number(name: str) -> int:
  return int(re.sub(r"\D", "", name))


def _wanted_by(model: RetinaNet, tensors: Tensors) -> tuple[Variables, dict[str, Keys]]:
  """Returns what `tensors.wanted_by` does, for a detector."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = abstract_variables(model, (32, 32, channels(tensors, BODY)), device)
  return wanted, detector_names(model, wanted)


def find_advice(tensors: Tensors, model: RetinaNet) -> list[str]:
  """Returns what to do with a file that does not fit, perhaps nothing.

  Args:
    tensors: by their names in torchvision.
    model: the detector that they do not fit.
  """
  if not _fits(model, tensors):
    names = [name for name in DETECTORS if _fits(create_detector(name), tensors)]
    return [f"it fits {', '.join(names)}"] if names else []
  bias = tensors.get(f"{_LAST}.bias")
  size = 0 if bias is None else bias.size // ANCHORS_PER_POSITION
  if size == model.num_classes:
    return []
  return [
    f"its head has {size} classes, not {model.num_classes}: new_head=True makes a new "
    "last layer for them"
  ]


def _fits(model: RetinaNet, tensors: Tensors) -> bool:
  """Whether tensors are those of a detector, for any number of classes."""
  wanted, names = _wanted_by(model, tensors)
  inner = {
    name: array
    for name, array in tensors.items()
    if not name.endswith(COUNTERS) and not name.startswith(_LAST)
  }
  shapes = {
    name: at(wanted, keys).shape
    for name, keys in names.items()
    if not name.startswith(_LAST)
  }
  return shapes.keys() == inner.keys() and all(
    (array := inner[name]) is not None and has_shape(array, shape)
    for name, shape in shapes.items()
  )
