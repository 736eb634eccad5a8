"""Finds the segmenter or the detector of a file of weights."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from resnet_jax.config.allowed import check_choice
from resnet_jax.config.schema import ModelConfig
from resnet_jax.models.detection import DETECTORS, create_detector
from resnet_jax.models.segmentation import SEGMENTERS, create_segmenter
from resnet_jax.runtime.compilation import compute_dtype
from resnet_jax.runtime.errors import UserError, setting_name
from resnet_jax.weights.fitting import describe_detector, find_segmenter
from resnet_jax.weights.foreign_names import to_detector, to_segmenter
from resnet_jax.weights.location import find
from resnet_jax.weights.tensors import Tensors, Translate, read_tensors

# Tensors -> number of classes, names of the networks that fit, further arguments.
_Find = Callable[[Tensors], tuple[int, list[str], dict[str, Any]]]


def _find_segmenter(tensors: Tensors) -> tuple[int, list[str], dict[str, Any]]:
  size, name, aux = find_segmenter(tensors)
  return size, [name] if name else [], {"aux": aux}


def _find_detector(tensors: Tensors) -> tuple[int, list[str], dict[str, Any]]:
  return *describe_detector(tensors), {}


class _Kind(NamedTuple):
  """A kind of network: how its tensors are named, found and created."""

  translate: Translate
  find: _Find
  create: Callable[..., nn.Module]
  names: Mapping[str, Any]


# What the network predicts, see `DataConfig.labels` -> its kind.
_KINDS = {
  "mask": _Kind(to_segmenter, _find_segmenter, create_segmenter, SEGMENTERS),
  "boxes": _Kind(to_detector, _find_detector, create_detector, DETECTORS),
}


def complete_dense(
  path: str | Path, labels: str, model: ModelConfig, ema: bool | None = None
) -> tuple[ModelConfig, nn.Module, bool]:
  """Builds the segmenter or the detector of a file of weights.

  Args:
    path: as for `load`.
    labels: "mask" or "boxes", from `find_labels`.
    model: the settings; a `name` of "" and a `num_classes` of 0 stand for those of the
      file.
    ema: as for `load`.

  Returns:
    The completed settings, the network, and whether it has another number of classes
    than the file, so that it needs a new head.

  Raises:
    UserError: no network of this package fits the file, or several do.
  """
  path, kind = find(path), _KINDS[labels]
  tensors, _ = read_tensors(path, ema, only_shapes=True, translate=kind.translate)
  size, names, options = kind.find(tensors)
  if model.name:
    check_choice(setting_name("model.name"), model.name, kind.names)
  elif len(names) != 1:
    which = f"may be for {', '.join(names)}" if names else "fits no network here"
    raise UserError(
      f"{path} does not say which network it is for, and {which}; name it by --model "
      "(model= in Python)"
    )
  name, number = model.name or names[0], model.num_classes or size
  dtype = compute_dtype(model.dtype)
  network = kind.create(name, number, norm=model.norm, dtype=dtype, **options)
  model = dataclasses.replace(model, name=name, num_classes=number)
  return model, network, number != size
