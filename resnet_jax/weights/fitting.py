"""Finds the architecture of a file of weights."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

from resnet_jax.config.schema import ModelConfig
from resnet_jax.models.anchors import ANCHORS_PER_POSITION
from resnet_jax.models.architectures import MODELS, Row
from resnet_jax.models.detection import DETECTORS, RetinaNet, create_detector
from resnet_jax.models.layers import EfficientChannelAttention
from resnet_jax.models.registry import create_model
from resnet_jax.models.segmentation import SEGMENTERS, create_segmenter
from resnet_jax.runtime.errors import UserError
from resnet_jax.weights import config_files
from resnet_jax.weights.architecture import find_settings, timm_name
from resnet_jax.weights.location import find
from resnet_jax.weights.metadata import read_labels, read_name_pattern, read_network
from resnet_jax.weights.tensors import (
  COUNTERS,
  Tensors,
  at,
  has_shape,
  read_names,
  read_tensors,
  wanted_by,
)
from resnet_jax.weights.torch_names import Network

_BLOCK = re.compile(r"(?:layer|stages\.)(\d{1,4})\.(?:blocks\.)?(\d{1,4})\.")
# The layers that depend on the number of classes, in a classifier and in a detector.
_HEAD, _CLASSES = ("fc.", "head."), "head.classification_head.cls_logits"
_PIXELS = "classifier.4.bias"  # Of a segmenter.
# torchvision's files, such as resnet50-11ad3fa6.pth.
_TORCHVISION = re.compile(r"(\w+)-[0-9a-f]{8}")


def complete_model(
  path: str | Path,
  model: ModelConfig,
  ema: bool | None = None,
  advice: str = "--model, such as --model resnet50 (model='resnet50' in Python)",
) -> ModelConfig:
  """Completes the settings of a network from a file of weights.

  Args:
    path: as for `load`.
    model: the settings. A `name` of "" stands for the network of the file: the one that
      it was saved from, that timm's `config.json` names, that torchvision's file name
      names, or the only one with parameters of these names and shapes. A `num_classes`
      of 0 stands for the number of logits in the file.
    ema: as for `load`.
    advice: how the user names an architecture, for an error.

  Raises:
    UserError: the name is "", and no network of this package fits the file, or several
      do.
    NotFoundError: there is no such file.
  """
  path = find(path)
  saved = read_network(path)
  if model.name and model.num_classes:
    return model
  tensors, _ = read_tensors(path, ema, only_shapes=True)
  if not model.name:
    settings = None if saved is None else find_settings(saved)
    if settings is None:
      settings = {"name": _find_name(path, tensors, advice)}
    model = dataclasses.replace(model, **settings)
  if not model.num_classes:
    model = dataclasses.replace(model, num_classes=count_logits(tensors))
  return model


def needs_new_head(path: str | Path, num_classes: int, ema: bool | None = None) -> bool:
  """Whether the head of a file has another number of classes than the one asked for.

  Args:
    path: as for `load`.
    num_classes: the number of classes; 0 is the number in the file.
    ema: as for `load`.
  """
  if not num_classes:
    return False
  tensors, _ = read_tensors(find(path), ema, only_shapes=True)
  return count_logits(tensors) != num_classes


def _find_name(path: Path, tensors: Tensors, advice: str) -> str:
  named = timm_name(config_files.read_architecture(path.parent))
  if named in MODELS:
    return named
  names = fitting(tensors)
  if pattern := read_name_pattern(path):
    names = [name for name in names if re.fullmatch(pattern, name)]
  if (match := _TORCHVISION.fullmatch(path.stem)) and match[1] in names:
    return match[1]
  if len(names) == 1:
    return names[0]
  which = f"may be for {', '.join(names)}" if names else "fits no network here"
  raise UserError(
    f"{path} does not say which network it is for, and {which}; name it by {advice}"
  )


def fitting(tensors: Tensors) -> list[str]:
  """Returns the architectures with these parameters, whatever the head is."""
  inner = {
    name: array
    for name, array in tensors.items()
    if not name.endswith(COUNTERS) and not name.startswith(_HEAD)
  }
  sizes = _stage_sizes(inner)
  return [
    name
    for name, row in MODELS.items()
    if tuple(row["stage_sizes"]) == sizes
    and _may_have(row, inner)
    and _has_parameters(create_model(name), inner)
  ]


def find_labels(path: str | Path) -> str:
  """Returns what the network of a file predicts, a value of `DataConfig.labels`.

  The file says it, or the names of its tensors, if they are torchvision's.

  Args:
    path: as for `load`.

  Raises:
    UserError: the file is damaged.
    NotFoundError: there is no such file.
  """
  path = find(path)
  if (saved := read_labels(path)) != "class":
    return saved
  names = read_names(path)
  for labels, last in (("mask", _PIXELS), ("boxes", f"{_CLASSES}.bias")):
    prefixes = [name.removesuffix(last) for name in names if name.endswith(last)]
    if any(name.startswith(f"{x}backbone.") for x in prefixes for name in names):
      return labels
  return "class"


def find_segmenter(tensors: Tensors) -> tuple[int, str, bool]:
  """Finds the segmentation network of a file.

  Args:
    tensors: by their names in torchvision, as `read_tensors` returns them.

  Returns:
    The number of classes, 0 if there is none; the name of the network, "" if none has
    these parameters; and whether it has an auxiliary head.
  """
  bias = tensors.get(_PIXELS)
  if bias is None or bias.ndim != 1 or not bias.size:
    return 0, "", False
  inner = {k: array for k, array in tensors.items() if not k.endswith(COUNTERS)}
  sizes = _stage_sizes({name.removeprefix("backbone."): None for name in inner})
  aux = any(name.startswith("aux_classifier.") for name in inner)
  for name, row in SEGMENTERS.items():
    if tuple(MODELS[row["net"]]["stage_sizes"]) != sizes:
      continue
    if _has_parameters(create_segmenter(name, bias.size, aux=aux), inner):
      return bias.size, name, aux
  return bias.size, "", aux


def describe_detector(tensors: Tensors) -> tuple[int, list[str]]:
  """Returns the number of classes of a detector, and the names of those that fit.

  Args:
    tensors: by their names in torchvision, as `read_tensors` returns them.
  """
  fit = [name for name in DETECTORS if is_detector(create_detector(name), tensors)]
  bias = tensors.get(f"{_CLASSES}.bias")
  return (0 if bias is None else bias.size // ANCHORS_PER_POSITION), fit


def is_detector(model: RetinaNet, tensors: Tensors) -> bool:
  """Whether tensors are those of a detector, for any number of classes."""
  inner = {
    name: array
    for name, array in tensors.items()
    if not name.endswith(COUNTERS) and not name.startswith(_CLASSES)
  }
  return _has_parameters(model, inner, _CLASSES)


def _has_parameters(
  model: Network, tensors: Tensors, last: str | tuple[str, ...] = _HEAD
) -> bool:
  """Whether tensors are those of a network but for the names that start with `last`."""
  wanted, names = wanted_by(model, tensors)
  shapes = {
    name: at(wanted, keys).shape
    for name, keys in names.items()
    if not name.startswith(last)
  }
  return shapes.keys() == tensors.keys() and all(
    (array := tensors[name]) is not None and has_shape(array, shape)
    for name, shape in shapes.items()
  )


def _may_have(row: Row, tensors: Tensors) -> bool:
  """Whether a row has the kinds of layers that the names tell; quick to compute."""
  text = " ".join(tensors)
  attention = getattr(row["block_cls"], "keywords", {}).get("attention_cls")
  is_eca = attention is EfficientChannelAttention
  return (
    bool(row.get("pre_activation")) == ("stages." in text)
    and row["stem"].startswith(("deep", "tiered"))
    == ("conv1.0." in text or "stem.conv2." in text)
    and is_eca == (".se.conv." in text)
    and (attention is not None and not is_eca) == (".se.fc1." in text)
  )


def _stage_sizes(tensors: Tensors) -> tuple[int, ...]:
  blocks = {match.groups() for match in map(_BLOCK.match, tensors) if match}
  counts = Counter(int(stage) for stage, _ in blocks)
  return tuple(counts[stage] for stage in sorted(counts))


def count_logits(tensors: Tensors) -> int:
  """Returns the number of logits; 0 if there is no head."""
  for name in ("fc.bias", "head.fc.bias"):
    if (bias := tensors.get(name)) is not None and bias.ndim == 1:
      return int(bias.size)
  return 0
