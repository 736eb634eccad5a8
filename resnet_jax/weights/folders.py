"""Writes weights as a folder that timm, torchvision or transformers loads.

The folder has `model.safetensors`, `README.md` (a model card) and, for timm and
transformers, `config.json`; for transformers also `preprocessor_config.json`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn

from resnet_jax.config.allowed import check_choice
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.models.architectures import MODELS, in_timm
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.models.resnet import ResNet, as_resnet
from resnet_jax.models.variables import Variables, image_channels
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError
from resnet_jax.weights.architecture import describe, exact_name
from resnet_jax.weights.load_save import to_bytes

_IN_TORCHVISION = (
  *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
  *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
  *("wide_resnet50_2", "wide_resnet101_2"),
)
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # The numbers of Pillow.
Object = dict[str, Any]
Rename = Callable[[str], str]


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
) -> None:
  """Writes a folder of weights for another library.

  Args:
    folder: a new or empty directory.
    form: "timm", "torchvision" or "transformers".
    model: the network, which the other library must have.
    variables: {"params": ..., "batch_stats": ...} in either layout.
    preprocessing: must resize and crop, as these libraries do.
    class_names: names in the order of the logits.
    dtype: see `weights.save`.
    training: how the weights were trained, for the model card; see `weights.save`.
    license_name: license of the weights for the model card, such as "mit"; "" states
      none.
    curves: path of a PNG file with the curves of training, for the model card; "" is
      none.

  Raises:
    UserError: the other library does not have the network or the preprocessing, or the
      directory is not empty.
  """
  check_choice("form", form, _FORMS)
  folder = Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{str(folder)!r} must be a new or an empty directory")
  network = as_resnet(model, "folders of weights")
  if not preprocessing.resize or not preprocessing.crop:
    raise UserError(
      f"--format={form} needs images that are resized and cropped; the weights have "
      f"resize={preprocessing.resize} and crop={preprocessing.crop}"
    )
  files, rename = _FORMS[form](network, variables, preprocessing, [*class_names])
  data = to_bytes(
    *(network, variables, preprocessing, class_names, dtype, training), rename=rename
  )
  card = _card(form, network, class_names, training or {}, license_name, bool(curves))
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


def _timm(
  model: ResNet,
  variables: Variables,
  preprocessing: Preprocessing,
  class_names: list[str],
) -> tuple[dict[str, Object], Rename | None]:
  name = exact_name(model)
  if name not in MODELS or not in_timm(name):
    raise UserError(f"timm has no {name or describe(model)['name'] or 'such network'}")
  crop, fraction = preprocessing.crop, preprocessing.crop / preprocessing.resize
  while math.floor(crop / fraction) < preprocessing.resize:  # timm computes this.
    fraction = math.nextafter(fraction, 0)
  is_deep = "conv1" in variables["params"]["stem"]
  first_conv = "conv1.0" if is_deep else "conv1"
  if model.pre_activation:
    first_conv = "stem.conv1" if is_deep else "stem.conv"
  channels = image_channels(variables)
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
  if class_names:
    config["label_names"] = class_names
  return {"config.json": config}, None


def _torchvision(
  model: ResNet,
  variables: Variables,
  preprocessing: Preprocessing,
  class_names: list[str],
) -> tuple[dict[str, Object], Rename | None]:
  channels = image_channels(variables)
  if exact_name(model) not in _IN_TORCHVISION or channels != 3:
    name = describe(model)["name"] or "such network"
    raise UserError(f"torchvision has no {name} for {channels} channels")
  return {}, None


def _transformers(
  model: ResNet,
  variables: Variables,
  preprocessing: Preprocessing,
  class_names: list[str],
) -> tuple[dict[str, Object], Rename | None]:
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
  channels = image_channels(variables)
  names = class_names or [f"LABEL_{i}" for i in range(model.num_classes)]
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


_FORMS = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
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


_USE = {
  "timm": """import timm
model = timm.create_model("local-dir:FOLDER", pretrained=True)""",
  "torchvision": """import safetensors.torch, torchvision
model = torchvision.models.{name}(num_classes={num_classes})
model.load_state_dict(safetensors.torch.load_file("FOLDER/model.safetensors"))""",
  "transformers": """import transformers
processor = transformers.AutoImageProcessor.from_pretrained("FOLDER")
model = transformers.ResNetForImageClassification.from_pretrained("FOLDER")""",
}


def _card(
  form: str,
  model: ResNet,
  class_names: Sequence[str],
  training: Mapping[str, Any],
  license_name: str,
  has_curves: bool,
) -> str:
  """Returns the text of a model card, with the front matter of the Hub."""
  name = describe(model)["name"] or type(model).__name__
  library = {"torchvision": "pytorch"}.get(form, form)
  head = [f"library_name: {library}", "pipeline_tag: image-classification"]
  head += [f"license: {license_name}"] * bool(license_name)
  lines = ["---", *head, "---", "", f"# {name}, {model.num_classes} classes", ""]
  if training:
    lines += [f"- Data: {training.get('data', 'not stated')}"]
    lines += [f"- Steps: {training.get('steps', 'not stated')}"]
    lines += [f"- Seed: {training.get('seed', 'not stated')}"]
  lines += [f"- License: {license_name or 'not stated'}", ""]
  if evaluation := training.get("evaluation"):
    lines += ["## Evaluation", "", "| metric | value |", "|---|---|"]
    lines += [f"| {key} | {value:.6g} |" for key, value in evaluation.items()]
    lines.append("")
  if settings := training.get("settings"):
    lines += ["## Recipe", "", "| setting | value |", "|---|---|"]
    lines += [f"| `{key}` | `{value!r}` |" for key, value in settings.items()]
    lines.append("")
  if has_curves:
    lines += ["![Curves of training](curves.png)", ""]
  use = _USE[form].format(name=name, num_classes=model.num_classes)
  lines += ["## Use", "", "```python", use, "```", ""]
  if class_names:
    lines += ["## Classes", "", ", ".join(class_names), ""]
  lines.append("Trained and converted with flax-resnet.")
  return "\n".join(lines) + "\n"
