"""Reads the config files that timm and transformers store beside weights.

`config.json` may be timm's, in its current or its first form, or transformers'.
`preprocessor_config.json` is transformers'. A null counts as no value.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypeIs

from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn_once

NAMES = ("config.json", "preprocessor_config.json")

Object = dict[str, Any]

# timm's defaults, https://github.com/huggingface/pytorch-image-models, `timm/data`.
_CROP_SHARE, _SIZE = 0.875, 224
# Keys that show that a file is from timm or transformers, even if it is damaged.
_THEIRS = (b'"pretrained_cfg"', b'"architecture"', b'"id2label"', b'"image_mean"')
# Options of timm's networks that do not change evaluation, or that the shapes show.
_HARMLESS = {
  *("num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate"),
  *("zero_init_last", "pretrained", "scriptable", "exportable"),
}
# The only values of other options that this package has.
_DEFAULTS = {"global_pool": "avg", "output_stride": 32, "act_layer": "relu"}
# The same for transformers' networks.
_TRANSFORMERS: dict[str, Object] = {
  "resnet": {"hidden_act": "relu", "downsample_in_first_stage": False},
  "bit": {
    "layer_type": "preactivation",
    "hidden_act": "relu",
    "global_padding": None,
    "embedding_dynamic_padding": False,
    "num_groups": 32,
    "output_stride": 32,
  },
}
_CLASS_NAMES = ("label_names", "labels", "label_descriptions")
# Keys of the evaluation preprocessing.
_SIZES = ("test_input_size", "input_size")
_PREPROCESSING = {*_SIZES, "crop_pct", "mean", "std", "interpolation", "crop_mode"}
_INTERPOLATIONS = ("nearest", "box", "hamming", "lanczos", "random")
# Pillow's filters in the order of their numbers, which transformers' files contain.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


def read_architecture(folder: Path) -> str:
  """Returns timm's name of the architecture; "" if there is none.

  Raises:
    UserError: the network has options that this package does not have.
  """
  config, path = _timm(folder), folder / "config.json"
  options = config.get("model_args") or {}
  if isinstance(options, dict):
    options = {
      key: value
      for key, value in options.items()
      if key not in _HARMLESS and value != _DEFAULTS.get(key)
    }
  if config.get("global_pool", "avg") != "avg":
    options = {"global_pool": config["global_pool"]}
  if options:
    raise UserError(
      f"{path} says that the network was made with {options!r:.80}, which this package "
      "does not have"
    )
  return str(config.get("architecture") or "")


def read_transformers_name(folder: Path) -> str:
  """Returns a pattern for the names of transformers' network; "" for another file.

  transformers has ResNets of basic and bottleneck blocks. A bottleneck's stride can be
  on its first 1x1 convolution, which the names and shapes of tensors do not show. It
  also has the networks of BiT.

  Raises:
    UserError: the network has options that this package does not have.
  """
  config = _read_object(folder / "config.json")
  kind = config.get("model_type")
  if kind not in ("resnet", "bit"):
    return ""
  for key, wanted in _TRANSFORMERS[kind].items():
    if config.get(key, wanted) != wanted:
      raise UserError(
        f"{folder / 'config.json'} says {key}={config[key]!r:.40}, which this package "
        "does not have"
      )
  if kind == "bit":
    return r"resnetv2_\d+x\d_bit"
  is_bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
  is_v1 = is_bottleneck and config.get("downsample_in_bottleneck")
  return r"resnetv1_\d+" if is_v1 else r"resnet\d+"


def read_class_names(folder: Path, num_classes: int) -> tuple[str, ...] | None:
  """Returns the names of the classes.

  Args:
    folder: folder of the weights.
    num_classes: number of classes of the network.

  Returns:
    The names; (), with a warning, if they are for another number of classes; None if
    the files have no names.

  Raises:
    UserError: the names are not strings.
  """
  path, timm = folder / "config.json", _timm(folder)
  found = {key: timm.get(key) for key in _CLASS_NAMES}
  found["id2label"] = _read_object(path).get("id2label")
  key = next((key for key in found if found[key] is not None), "")
  if not key:
    return None
  names: Any = found[key]
  if isinstance(names, dict):
    if "0" not in names:
      return ()  # The keys are names, which have no order.
    # timm may leave out some numbers.
    is_whole = str(num_classes - 1) in names
    size = max(len(names), num_classes if is_whole else 0)
    names = [names.get(str(i), f"class {i}") for i in range(size)]
  if not is_list_of_names(names):
    raise UserError(
      f"{key} in {path} must name the classes 0, 1 ..., not {names!r:.60}"
    )
  if key == "id2label" and names == [f"LABEL_{i}" for i in range(len(names))]:
    return None  # transformers' default for classes without names.
  if len(names) != num_classes:
    warn_once(f"{path} names {len(names)} classes, not {num_classes}: they are ignored")
    return ()
  return tuple(names)


def is_list_of_names(value: object) -> TypeIs[list[str]]:
  return isinstance(value, list) and all(isinstance(name, str) for name in value)


def read_preprocessing(folder: Path) -> Preprocessing | None:
  """Returns the evaluation preprocessing; None if the files do not have it.

  Options that this package does not have are replaced, with a warning.

  Raises:
    UserError: a file is damaged.
  """
  timm = _timm(folder)
  read, values, path = _from_timm, timm, folder / NAMES[0]
  if not timm.keys() & _PREPROCESSING:
    read, path = _from_transformers, folder / NAMES[1]
    values = _read_object(path)
  values = {key: value for key, value in values.items() if value is not None}
  try:
    return read(values, str(path)) if values else None
  except Exception as error:  # JSON of any shape raises errors of many types.
    reason = str(error) if isinstance(error, UserError) else repr(error)
    raise UserError(f"the preprocessing in {path} is damaged: {reason:.200}") from error


def _from_timm(values: Object, path: str) -> Preprocessing:
  """Reads `pretrained_cfg`. Like timm, uses the test size and crop fraction if set."""
  size: Any = next((values[key] for key in _SIZES if key in values), [3, _SIZE, _SIZE])
  share: Any = values.get("test_crop_pct", values.get("crop_pct", _CROP_SHARE))
  crop = _side(size[1:], path)
  if (trained := values.get("input_size", size)) != size:
    warn_once(
      f"{path}: images are cropped to its test size of {crop} pixels, not to the "
      f"{trained[-1]} of its training"
    )
  if (mode := values.get("crop_mode", "center")) != "center":
    warn_once(
      f"{path} asks for crop_mode={mode!r}; squares are cut from the middle instead"
    )
  return Preprocessing(
    mean=tuple(values.get("mean", Preprocessing.mean)),
    std=tuple(values.get("std", Preprocessing.std)),
    resize=math.floor(crop / share),
    crop=crop,
    interpolation=_interpolation(values.get("interpolation", "bicubic"), path),
  )


def _from_transformers(values: Object, path: str) -> Preprocessing:
  """Reads `preprocessor_config.json` of any image processor that resizes and crops."""
  if abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 0.01:
    raise UserError(f"rescale_factor={values['rescale_factor']} must be 1/255")
  size: Any = values.get("size", _SIZE)
  resize = crop = _short(size, path)
  is_cut = values.get("do_center_crop", "crop_size" in values)
  if is_cut:
    crop = _short(values.get("crop_size", size), path)
  elif "crop_pct" in values and resize < 384:  # ConvNeXt's; ResNets use it too.
    resize, is_cut = math.floor(resize / values["crop_pct"]), True
  if not is_cut or (isinstance(size, dict) and "shortest_edge" not in size):
    warn_once(f"{path} asks for whole images; squares are cut from the middle instead")
  mean, std = values.get("image_mean"), values.get("image_std")
  if not values.get("do_normalize", True):
    mean, std = (0.0,), (1.0,)
  return Preprocessing(
    mean=tuple(mean or Preprocessing.mean),
    std=tuple(std or Preprocessing.std),
    resize=resize if values.get("do_resize", True) else 0,
    crop=crop,
    interpolation=_interpolation(_RESAMPLE[values.get("resample", 3)], path),
  )


def _short(size: int | Object, path: str) -> int:
  """Returns the short side, from {"shortest_edge": ...} or from height and width."""
  if not isinstance(size, dict):
    return size
  if "shortest_edge" in size:
    short: int = size["shortest_edge"]
    return short
  return _side((size["height"], size["width"]), path)


def _side(sides: Sequence[int], path: str) -> int:
  height, width = sides
  if height != width:
    warn_once(f"{path} asks for images of {height} x {width}; squares are used instead")
  return min(height, width)


def _interpolation(name: str, path: str) -> str:
  if name in ("bilinear", "bicubic"):
    return name
  if name not in _INTERPOLATIONS:
    raise UserError(f"interpolation={name!r} is unknown")
  warn_once(f"{path} asks for interpolation={name!r}; 'bicubic' is used instead")
  return "bicubic"


def _timm(folder: Path) -> Object:
  """Returns timm's config.json with its `pretrained_cfg`; {} if it is not timm's."""
  config = _read_object(folder / "config.json")
  kept = config.get("pretrained_cfg")
  if kept is None:
    # In timm's first form, all keys were at the top level.
    return config if isinstance(config.get("architecture"), str) else {}
  if not isinstance(kept, dict):
    raise UserError(
      f"pretrained_cfg in {folder / 'config.json'} must be an object, not {kept!r:.60}"
    )
  return kept | {key: value for key, value in config.items() if value is not None}


def _read_object(path: Path) -> Object:
  """Returns a JSON object; {} if there is no file.

  It is also {}, with a warning, if another program's `config.json` is no JSON object.
  """
  if not path.is_file():
    return {}
  data = path.read_bytes()
  try:
    found = json.loads(data.decode("utf-8-sig"))
  except (ValueError, RecursionError):
    found = None
  if isinstance(found, dict):
    return found
  if any(key in data for key in _THEIRS) or path.name != "config.json":
    raise UserError(f"{path} is no JSON object; correct it, or move it away")
  warn_once(f"{path} is no JSON object, and is ignored")
  return {}
