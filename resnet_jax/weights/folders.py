"""Writes weights as a folder that this package or another library loads.

The folder has `model.safetensors`, `README.md` (a model card) and, for timm and
transformers, `config.json`; for transformers also `preprocessor_config.json`.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from resnet_jax.config.allowed import check_choice
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.models.architectures import MODELS, in_timm
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.models.resnet import ResNet, as_resnet
from resnet_jax.models.variables import (
  Variables,
  image_channels,
  with_reversed_channels,
)
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError
from resnet_jax.weights.architecture import describe, exact_name
from resnet_jax.weights.load_save import to_bytes
from resnet_jax.weights.model_card import model_card

_IN_TORCHVISION = (
  *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
  *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
  *("wide_resnet50_2", "wide_resnet101_2"),
)
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # The numbers of Pillow.
Object = dict[str, Any]
Rename = Callable[[str], str]


class _Net(NamedTuple):
  """What is written."""

  model: ResNet
  variables: Variables
  preprocessing: Preprocessing
  class_names: list[str]

  @property
  def channels(self) -> int:
    return image_channels(self.variables)

  @property
  def name(self) -> str:
    return str(describe(self.model)["name"])


# The JSON files of a folder by their names, and what renames its tensors.
_Files = tuple[dict[str, Object], Rename | None]


def save_folder(
  folder: str | Path,
  form: str,
  model: nn.Module,
  variables: Variables,
  preprocessing: Preprocessing,
  class_names: Sequence[str] = (),
  *,
  dtype: str = "float32",
  training: Mapping[str, Any] | None = None,
  license_name: str = "",
  curves: str = "",
  address: str = "",
) -> None:
  """Writes a folder of weights, with a model card.

  Args:
    folder: a new or empty directory.
    form: who reads it: "timm", "torchvision", "transformers", or "flax-resnet" for this
      package.
    model: the network, which the other library must have.
    variables: {"params": ..., "batch_stats": ...} in either layout.
    preprocessing: must resize and crop for another library, as these libraries do.
    class_names: names in the order of the logits.
    dtype: see `weights.save`.
    training: how the weights were trained, for the model card; see `weights.save`.
    license_name: license of the weights for the model card, such as "mit"; "" states
      none.
    curves: path of a PNG file with the curves of training, for the model card; "" is
      none.
    address: the name "owner/name" that the folder will have on the Hugging Face hub,
      for the model card; "" is none.

  Raises:
    UserError: the other library does not have the network or the preprocessing, or the
      directory is not empty.
  """
  check_choice("form", form, _FORMS)
  folder = Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{str(folder)!r} must be a new or an empty directory")
  model = as_resnet(model, "folders of weights")
  net = _Net(model, variables, preprocessing, [*class_names])
  if form != OWN_FORM:
    net = _for_others(net, form)
  files, rename = _FORMS[form](net)
  data = to_bytes(*net, dtype, training, rename)
  card = model_card(
    form,
    net.name or type(model).__name__,
    model.num_classes,
    class_names,
    training or {},
    license_name=license_name,
    has_curves=bool(curves),
    address=address,
  )
  folder.mkdir(parents=True, exist_ok=True)
  if curves:
    (folder / "curves.png").write_bytes(Path(curves).read_bytes())
  for name, value in files.items():
    text = json.dumps(value, indent=2) + "\n"
    (folder / name).write_text(text, encoding="utf-8")
  (folder / "README.md").write_text(card, encoding="utf-8")
  # Last, because a folder is only read with its weights.
  with replacing(str(folder / "model.safetensors")) as part:
    Path(part).write_bytes(data)


def _for_others(net: _Net, form: str) -> _Net:
  """Returns a network as other libraries need it: resized, cropped and RGB images.

  Raises:
    UserError: its images are not resized and cropped, or have more than 8 bits.
  """
  wanted = net.preprocessing
  if not wanted.resize or not wanted.crop:
    raise UserError(
      f"--format={form} needs images that are resized and cropped; the weights have "
      f"resize={wanted.resize} and crop={wanted.crop}"
    )
  if wanted.max_value:
    raise UserError(
      f"--format={form} is for 8-bit images; the weights have max_value="
      f"{wanted.max_value}"
    )
  if wanted.channel_order == "rgb":
    return net
  rgb = dataclasses.replace(
    wanted, mean=wanted.mean[::-1], std=wanted.std[::-1], channel_order="rgb"
  )
  variables = with_reversed_channels(net.variables)
  return net._replace(preprocessing=rgb, variables=variables)


def _own(net: _Net) -> _Files:
  return {}, None


def _timm(net: _Net) -> _Files:
  model, preprocessing, channels = net.model, net.preprocessing, net.channels
  name = exact_name(model)
  if name not in MODELS or not in_timm(name):
    raise UserError(f"timm has no {name or net.name or 'such network'}")
  crop, fraction = preprocessing.crop, preprocessing.crop / preprocessing.resize
  while math.floor(crop / fraction) < preprocessing.resize:  # timm computes this.
    fraction = math.nextafter(fraction, 0)
  is_deep = "conv1" in net.variables["params"]["stem"]
  first_conv = "conv1.0" if is_deep else "conv1"
  if model.pre_activation:
    first_conv = "stem.conv1" if is_deep else "stem.conv"
  config: Object = {
    "architecture": name,
    "num_classes": model.num_classes,
    "num_features": model.stage_features[-1],
    "pretrained_cfg": {
      "input_size": [channels, crop, crop],
      "crop_pct": fraction,
      "crop_mode": "center",
      "interpolation": preprocessing.interpolation,
      "mean": _of_channels(preprocessing.mean, channels),
      "std": _of_channels(preprocessing.std, channels),
      "num_classes": model.num_classes,
      "first_conv": first_conv,
      "classifier": "head.fc" if model.pre_activation else "fc",
    },
  }
  if channels != 3:
    config["model_args"] = {"in_chans": channels}
  if net.class_names:
    config["label_names"] = net.class_names
  return {"config.json": config}, None


def _torchvision(net: _Net) -> _Files:
  if exact_name(net.model) not in _IN_TORCHVISION or net.channels != 3:
    name = net.name or "such network"
    raise UserError(f"torchvision has no {name} for {net.channels} channels")
  return {}, None


def _transformers(net: _Net) -> _Files:
  model, preprocessing, channels = net.model, net.preprocessing, net.channels
  found = describe(model)
  kinds = {
    "BasicBlock": ("basic", False),
    "BottleneckBlock": ("bottleneck", False),
    "BottleneckBlock(stride_on_1x1=True)": ("bottleneck", True),
  }
  parts = {"stem": "imagenet", "shortcut": "B", "norm": "batch", "conv": "Conv"}
  plain = {BasicBlock, BottleneckBlock}
  groups = getattr(model.block_cls, "keywords", {}).get("groups", 1)
  if (
    found["block"] not in kinds
    or groups > 1
    or model.pre_activation
    or any(found[part] != value for part, value in parts.items())
    or getattr(model.block_cls, "func", model.block_cls) not in plain
  ):
    raise UserError(
      f"transformers has no {found['name'] or 'such network'}; it has ResNets of basic "
      "or bottleneck blocks with the stem for ImageNet and shortcut B"
    )
  layer_type, stride_on_1x1 = kinds[found["block"]]
  names = net.class_names or [f"LABEL_{i}" for i in range(model.num_classes)]
  names += [f"LABEL_{i}" for i in range(len(names), model.num_classes)]
  config = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "num_channels": channels,
    "embedding_size": model.stem_features or model.features,
    "hidden_sizes": [*model.stage_features],
    "depths": [*model.stage_sizes],
    "layer_type": layer_type,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": stride_on_1x1,
    "id2label": {str(i): name for i, name in enumerate(names)},
    "label2id": {name: i for i, name in enumerate(names)},
  }
  side = preprocessing.crop
  processor = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": channels == 3,
    "do_resize": True,
    "size": {"shortest_edge": preprocessing.resize},
    "resample": _RESAMPLE[preprocessing.interpolation],
    "do_center_crop": True,
    "crop_size": {"height": side, "width": side},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _of_channels(preprocessing.mean, channels),
    "image_std": _of_channels(preprocessing.std, channels),
  }
  files = {"config.json": config, "preprocessor_config.json": processor}
  return files, _transformers_name


OWN_FORM = "flax-resnet"
_FORMS = {
  "timm": _timm,
  "torchvision": _torchvision,
  "transformers": _transformers,
  OWN_FORM: _own,
}
FORMS = tuple(_FORMS)


def _transformers_name(name: str) -> str:
  """Returns the name in transformers for a name in torchvision."""
  kinds = {"conv": "convolution", "bn": "normalization"}
  parts = name.split(".")
  if parts[0] == "fc":
    return f"classifier.1.{parts[1]}"
  if len(parts) == 2:
    return f"resnet.embedder.embedder.{kinds[parts[0][:-1]]}.{parts[1]}"
  stage, block, part, *rest = parts
  inner = f"resnet.encoder.stages.{int(stage[5:]) - 1}.layers.{block}"
  if part == "downsample":
    return f"{inner}.shortcut.{[*kinds.values()][int(rest[0])]}.{rest[1]}"
  kind, number = part[:-1], int(part[-1])
  return f"{inner}.layer.{number - 1}.{kinds[kind]}.{rest[0]}"


def _of_channels(values: Sequence[float], channels: int) -> list[float]:
  return [*values] * (channels // len(values))
