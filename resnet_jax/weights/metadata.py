"""The metadata of weights: network, preprocessing, class names, training.

`save` stores them in the `.safetensors` file. For other weights, files in the same
folder may contain some of the metadata.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
from flax import linen as nn

from resnet_jax.config.preprocessing import Preprocessing, from_dict
from resnet_jax.models.detection import RetinaNet
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.segmentation import Segmenter
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn_once
from resnet_jax.weights import coco, config_files, imagenet, keras_file, voc
from resnet_jax.weights.architecture import Description, describe
from resnet_jax.weights.location import KERAS_SUFFIXES, find

# Side of the squares into which images are scaled, in pixels.
_SQUARES: dict[type[nn.Module], int] = {Segmenter: 693, RetinaNet: 1088}
# Hashes in the names of torchvision's files that need images resized to 232 pixels, not
# to 256 (torchvision/models/resnet.py, `transforms` of each entry).
_RESIZED_TO_232 = {
  *("11ad3fa6", "cd907fc2", "f82ba261"),  # ResNet-50, 101, 152 IMAGENET1K_V2
  *("1a0047aa", "110c445d", "173b62eb"),  # ResNeXt-50 32x4d, 101 32x8d, 101 64x4d
  *("9ba9bcbe", "d733dc28"),  # Wide ResNet-50-2, 101-2 IMAGENET1K_V2
}

# (labels, number of classes) -> the names of the classes that they usually are.
_USUAL_NAMES: dict[tuple[str, int], Callable[[], tuple[str, ...]]]
_USUAL_NAMES = {
  ("class", 1000): imagenet.class_names,
  ("mask", 21): voc.class_names,
  ("boxes", 91): coco.class_names,
}


def read_network(path: Path) -> Description | None:
  """Returns `describe` of the network that a file was saved from; None if unknown.

  Raises:
    ValueError: the metadata is damaged.
  """
  return _read_object(path, "resnet_jax_network")


def read_name_pattern(path: Path) -> str:
  """Returns a pattern for the architecture of a file; "" if nothing tells of it.

  Keras and transformers have networks that differ in the place of a stride, which the
  names and shapes of tensors do not show.
  """
  if path.suffix in KERAS_SUFFIXES:
    return keras_file.ARCHITECTURES
  return config_files.read_transformers_name(path.parent)


def read_training(path: str | Path) -> dict[str, Any]:
  """Returns how the weights of a file were trained; {} if it is not known.

  Args:
    path: as for `load`.

  Returns:
    The `training` argument of `save`; see `resnet_jax.inference.convert`.

  Raises:
    ValueError: the metadata is damaged.
    FileNotFoundError: there is no such file.
  """
  return _read_object(find(path), "training") or {}


def read_labels(path: str | Path) -> str:
  """Returns what the network of a file predicts, a value of `DataConfig.labels`.

  Raises:
    UserError: the metadata is damaged.
  """
  found = read_training(path).get("labels", "class")
  if found not in ("class", "classes", "numbers"):
    raise UserError(f"the labels of {path} are damaged: {found!r:.40}")
  return str(found)


def read_preprocessing(path: str | Path, model: nn.Module) -> Preprocessing:
  """Returns the preprocessing that belongs to a file of weights.

  It comes from the first of these that exists: (1) what `save` stored in the file; (2)
  the files of timm or transformers beside it; (3) Keras's own, for a file of Keras; (4)
  ImageNet's preprocessing without resizing and crop, if the model has a stem for small
  images; (5) squares of 693 pixels for a `Segmenter` and 1,088 for a `RetinaNet`, so
  that a photo of 4:3 has a short side of about 520 or 800 as in torchvision; (6)
  ImageNet's usual preprocessing, resized to 232 pixels for some files of torchvision.

  Args:
    path: as for `load`.
    model: as for `load`.

  Raises:
    ValueError: the file or one beside it is damaged.
    FileNotFoundError: there is no such file.
  """
  path = find(path)
  found = kept(path, "preprocessing")
  if found is not None:
    try:
      return from_dict(found)
    except Exception as error:  # JSON of any shape raises errors of many types.
      reason = str(error) if isinstance(error, UserError) else repr(error)
      raise UserError(
        f"the preprocessing of {path} is damaged: {reason:.200}"
      ) from error
  if beside := config_files.read_preprocessing(path.parent):
    return beside
  if path.suffix in KERAS_SUFFIXES and isinstance(model, ResNet):
    module = "resnet_v2" if model.pre_activation else "resnet"
    warn_once(
      f"{path} names no preprocessing; keras.applications.{module}.preprocess_input is "
      "assumed"
    )
    return keras_file.PREPROCESSING[model.pre_activation]
  if isinstance(model, ResNet) and describe(model)["stem"] == "cifar":
    return Preprocessing(resize=0, crop=0)
  for kind, size in _SQUARES.items():
    if isinstance(model, kind):
      return Preprocessing(resize=size, crop=size)
  second = path.stem.rsplit("-", 1)[-1] in _RESIZED_TO_232
  return Preprocessing(resize=232 if second else 256)


def read_class_names(path: str | Path, num_classes: int) -> tuple[str, ...]:
  """Returns a name for each class of a file of weights.

  A class without a name in `known_class_names` has a name such as "class 7".

  Args:
    path: as for `load`.
    num_classes: number of classes of the model.

  Raises:
    ValueError: the file or the one beside it is damaged.
    FileNotFoundError: there is no such file.
  """
  return all_class_names(known_class_names(path, num_classes), num_classes)


def known_class_names(
  path: str | Path, num_classes: int, labels: str = "class"
) -> tuple[str, ...]:
  """Returns the names of the classes, () if they are not known.

  They come from the first of these that exists: (1) what `save` stored in the file; (2)
  timm's or transformers' `config.json` beside the file; (3) ImageNet's names, if there
  are 1,000 classes, or for masks VOC's, if there are 21. There may be fewer names than
  classes.

  Args:
    path: as for `load`.
    num_classes: number of classes of the model.
    labels: what the network predicts, see `find_labels`.

  Raises:
    ValueError: the file or the one beside it is damaged.
    FileNotFoundError: there is no such file.
  """
  path = find(path)
  found = kept(path, "class_names")
  if found is not None:
    if not config_files.is_list_of_names(found) or len(found) > num_classes:
      raise UserError(
        f"the class_names in {path} must be a list of {num_classes} names, one for "
        f"each class, not {found!r:.60}"
      )
    return tuple(found)
  names = config_files.read_class_names(path.parent, num_classes)
  if names is None:
    usual = _USUAL_NAMES.get((labels, num_classes))
    names = usual() if usual else ()
  return names


def all_class_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
  """Returns a name for each logit, such as "class 7" for one without a name."""
  return *names, *(f"class {i}" for i in range(len(names), num_classes))


def kept(path: Path, key: str) -> Any:
  """Returns the value that `weights.save` stored under a key; None if there is none."""
  text = _metadata(path).get(key)
  if text is None:
    return None
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    found = None
  if found is None:
    raise UserError(f"the {key} of {path} is damaged: {text[:60]!r} is no JSON")
  return found


def _read_object(path: Path, key: str) -> dict[str, Any] | None:
  found = kept(path, key)
  if found is not None and not isinstance(found, dict):
    raise UserError(f"the {key} of {path} is damaged: {found!r:.60}")
  return found


def _metadata(path: Path) -> dict[str, str]:
  if path.suffix != ".safetensors":
    return {}
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return file.metadata() or {}
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error
