"""Checks that weights belong to a network, beyond their names and shapes.

Two networks may have the same parameters and compute different things: they may differ
in a shortcut without parameters, in the place of the stride or in epsilon.
"""

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

from resnet_jax.models.architectures import MODELS
from resnet_jax.models.norms import NORMS
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEMS
from resnet_jax.runtime.errors import UserError

# The result of `describe`: field name -> JSON value.
Description = dict[str, Any]

# Fields that a description leaves out: they do not change evaluation, or the shapes of
# the parameters show them.
_NOT_TOLD = {
  *("momentum", "unbiased", "groups", "scale_init", "axis_name", "dtype"),  # Of norms.
  "use_running_average",
  *("zero_init", "dropout", "gate_bias"),  # Of blocks and shortcuts.
}


def describe(model: ResNet) -> Description:
  """Describes the parts of a network, which its parameters do not fully show.

  Each part is described by its name in the registry or, if it is the user's own, by the
  name of its class. "name" is the architecture; "" if it is not in the registry.
  """
  found = _describe(model)
  names = _names()
  # If no architecture has these widths, take the name of one with the same parts.
  name = names.get(_with_widths(model)) or names.get(str(found), "")
  return {"name": name, **found}


def exact_name(model: ResNet) -> str:
  """Returns the architecture that has the parts and the widths of a network, or ""."""
  return _names().get(_with_widths(model), "")


def _describe(model: ResNet) -> Description:
  found: Description = {"stage_sizes": list(model.stage_sizes)}
  # These two norms differ from "batch" in training only.
  norms = {name: NORMS[name] for name in NORMS.keys() - {"unbiased_batch", "frozen"}}
  parts: dict[str, Mapping[str, Any]]
  parts = {"block": {}, "conv": {}, "stem": STEMS, "shortcut": SHORTCUTS, "norm": norms}
  for field, known in parts.items():
    text = _spell(getattr(model, f"{field}_cls"))
    names = {_spell(part): name for name, part in known.items()}
    found[field] = names.get(text, text)
  return found | {"pre_activation": model.pre_activation}


def find_settings(saved: Description) -> dict[str, Any] | None:
  """Inverse of `describe`: returns the settings of a network of this package.

  Args:
    saved: `describe` of a network, perhaps damaged.

  Returns:
    Settings of `ModelConfig`, such as {"name": "resnet20", "shortcut": "B"}; None if
    no architecture has these parts.
  """
  saved = {"conv": "Conv"} | saved  # Older files do not name it.
  choices: dict[str, Collection[str]]
  choices = {"stem": STEMS, "shortcut": SHORTCUTS, "norm": NORMS}
  # Try the saved name first, because two names can describe the same network: plain20
  # with the shortcut of resnet20 is resnet20.
  for name in sorted(MODELS, key=lambda name: name != saved.get("name")):
    own = _describe(create_model(name))
    changed = {
      field: saved.get(field) for field in own if saved.get(field) != own[field]
    }
    if all(
      isinstance(value, str) and value in choices.get(field, ())
      for field, value in changed.items()
    ):
      return {"name": name, **changed}
  return None


@functools.cache
def _names() -> dict[str, str]:
  """Returns the name of each architecture by the text of its description."""
  models = {name: create_model(name) for name in reversed([*MODELS])}
  return {str(_describe(model)): name for name, model in models.items()} | {
    _with_widths(model): name for name, model in models.items()
  }


def _with_widths(model: ResNet) -> str:
  groups = getattr(model.block_cls, "keywords", {}).get("groups", 1)
  widths = (model.features, model.stem_features, groups)
  return f"{_describe(model)}, {widths}"


def _spell(part: Any) -> str:
  """Returns a class as text, with the fields that a `partial` changes."""
  keywords: dict[str, Any] = {}
  if isinstance(part, functools.partial):
    part, keywords = part.func, part.keywords
  defaults = {}
  if dataclasses.is_dataclass(part):
    defaults = {field.name: field.default for field in dataclasses.fields(part)}
  changed = [
    f"{name}={_spell(value) if callable(value) else repr(value)}"
    for name, value in sorted(keywords.items())
    if name not in _NOT_TOLD
    and (callable(value) or isinstance(value, str | int | float | None))
    and value != defaults.get(name, dataclasses.MISSING)
  ]
  name: str = getattr(part, "__name__", type(part).__name__)
  name = name.replace("FrozenBatchNorm", "BatchNorm")
  return f"{name}({', '.join(changed)})" if changed else name


def check_same(saved: Description, model: ResNet, source: str) -> None:
  """Raises `UserError` if weights belong to another network.

  Args:
    saved: `describe` of the network that the weights were saved from.
    model: the network that is to use the weights.
    source: name of the weights in the message.
  """
  own = describe(model)
  differences = [
    f"its {field} is {saved[field]!r:.80}, not {value!r:.80}"
    for field, value in own.items()
    if field != "name" and saved.get(field, value) != value
  ]
  if differences:
    raise UserError(
      f"{source} was saved from {_name(saved)}, not from {_name(own)}: "
      f"{'; '.join(differences)}; name the architecture that it was saved from"
    )


def _name(description: Description) -> str:
  return f"{description.get('name') or 'an unnamed network'!s:.80}"


def timm_name(architecture: str) -> str:
  """Returns the name of an architecture in timm 1.0 for a name of any version of timm.

  Old names began with the origin of the weights, such as "ssl_resnet50".
  """
  name = re.sub(r"^(tv|ssl|swsl|ig|gluon)_", "", architecture.partition(".")[0])
  return re.sub(r"_v1b?([cd]?)$", r"\1", name)


def check_named(architecture: str, model: ResNet, source: str) -> None:
  """Raises `UserError` if a network is not the architecture that timm names.

  The stem may differ, because shapes show it.

  Args:
    architecture: timm's name.
    model: the network.
    source: name of the file that contains timm's name, for the message.
  """
  name = timm_name(architecture)
  if name not in MODELS:
    raise UserError(
      f"{source} says that the weights are of {architecture!r:.80}, which is not among "
      "the architectures of this package"
    )
  own, named = describe(model), _describe(create_model(name))
  fields = named.keys() - {"stem", "norm"}
  if any(own[field] != named[field] for field in fields):
    raise UserError(
      f"{source} says that the weights are of {architecture!r:.80}, not of "
      f"{_name(own)}; name that architecture"
    )
