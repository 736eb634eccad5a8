"""The model card of a folder of weights, as the Hugging Face hub shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

_LIBRARIES = {"torchvision": "pytorch"}  # The Hub's names, where they differ.
# {place} is the folder, or its name on the Hub.
_USE = {
  "flax-resnet": """import resnet_jax
classifier = resnet_jax.load("{scheme}{place}")""",
  "timm": """import timm
model = timm.create_model("{scheme}{place}", pretrained=True)""",
  "torchvision": """import safetensors.torch, torchvision
model = torchvision.models.{name}(num_classes={num_classes})
model.load_state_dict(safetensors.torch.load_file("FOLDER/model.safetensors"))""",
  "transformers": """import transformers
processor = transformers.AutoImageProcessor.from_pretrained("{place}")
model = transformers.ResNetForImageClassification.from_pretrained("{place}")""",
}
_SCHEMES = {"flax-resnet": ("", "hf://"), "timm": ("local-dir:", "hf-hub:")}


def model_card(
  form: str,
  name: str,
  num_classes: int,
  class_names: Sequence[str],
  training: Mapping[str, Any],
  *,
  license_name: str,
  has_curves: bool,
  address: str,
) -> str:
  """Returns the text of a model card, with the front matter of the Hub.

  Args:
    form: a key of `_USE`.
    name: name of the architecture.
    num_classes: number of logits.
    class_names: names in the order of the logits; () if they are not known.
    training: as for `weights.save`; {} if it is not known.
    license_name: see `save_folder`.
    has_curves: whether there is a file curves.png beside the card.
    address: see `save_folder`.
  """
  head = [f"library_name: {_LIBRARIES.get(form, form)}"]
  head += ["pipeline_tag: image-classification"]
  head += [f"license: {license_name}"] * bool(license_name)
  lines = ["---", *head, "---", "", f"# {name}, {num_classes} classes", ""]
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
  use = _USE[form].format(
    name=name,
    num_classes=num_classes,
    place=address or "FOLDER",
    scheme=_SCHEMES.get(form, ("", ""))[bool(address)],
  )
  lines += ["## Use", "", "```python", use, "```", ""]
  if address and "FOLDER" in use:
    call = f"huggingface_hub.snapshot_download({address!r})"
    lines += [f"FOLDER is the path that `{call}` returns.", ""]
  if class_names:
    lines += ["## Classes", "", ", ".join(class_names), ""]
  lines.append("Trained and converted with flax-resnet.")
  return "\n".join(lines) + "\n"
