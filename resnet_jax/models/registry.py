"""Builds networks by name or from settings."""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from resnet_jax.config.allowed import check_choice
from resnet_jax.config.factories import call_factory
from resnet_jax.config.schema import Config
from resnet_jax.models.architectures import MODELS, Row
from resnet_jax.models.groups import BODY, check_frozen, check_multipliers
from resnet_jax.models.norms import NORMS
from resnet_jax.models.old_names import warn_of_old_name
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEMS
from resnet_jax.runtime.errors import UserError, setting_name


def own_norm(name: str) -> str:
  """Returns the norm of an architecture, a key of `NORMS`; "batch" for other names."""
  norm: str = MODELS.get(name, {}).get("norm", "batch")
  return norm


def create_model(
  name: str,
  num_classes: int | None = None,
  *,
  stem: str = "",
  shortcut: str = "",
  norm: str = "",
  zero_init_residual: bool = False,
  stochastic_depth: float = 0.0,
  scan: bool = False,
  remat: bool = False,
  dtype: DTypeLike = jnp.float32,
) -> ResNet:
  """Builds a named architecture.

  Args:
    name: a key of `MODELS`, such as "resnet50", or "plain20" (no shortcuts).
    num_classes: number of logits; None is 1000 for ImageNet networks, 10 for
      CIFAR networks.
    stem: "imagenet" (7x7 at stride 2, max-pool), "deep" (three 3x3, max-pool),
      "tiered", "cifar" (3x3), another key of `STEMS`, or "" for the architecture's own.
      "cifar" suits images of at most about 64 pixels per side.
    shortcut: "A", "B", "C" (paper, section 3.3), "D" (average-pooled B), "B3x3"
      (SENet-154's), "highway", "none", or "" for the architecture's own.
    norm: "batch", "unbiased_batch" (running variance as in PyTorch), "group", "frozen"
      (batch norm with constant statistics, scale and bias), "evo", "filter_response",
      "none" (only a bias), or "" for the architecture's own; see `norms.py`.
    zero_init_residual: initialise every block to equal its shortcut.
    stochastic_depth: see `ResNet`; in [0, 1).
    scan: see `ResNet`.
    remat: see `ResNet`.
    dtype: dtype of the computation; parameters and logits are float32.

  Returns:
    A Flax module with the methods `init` and `apply`. To change other fields, such as
    `features` and `dropout`, use `model.clone(features=32)`.

  Raises:
    ValueError: the name, stem, shortcut or norm is unknown; a number is out of range;
      `stochastic_depth` or `zero_init_residual` is set without shortcuts, so that the
      output would not depend on the images; or `zero_init_residual` is set with the
      norm "frozen" or "none".
  """
  setting, hint = setting_name("model.name"), "`resnet-jax models` lists all"
  if setting == "config.model.name":  # Not the flag of a command without factories.
    hint += "; config.model.factory names a network of your own"
  check_choice(setting, name, MODELS, hint)
  row = dict(MODELS[name])
  own_stem, own_shortcut = row.pop("stem"), row.pop("shortcut")
  stem, shortcut = stem or own_stem, shortcut or own_shortcut
  norm = norm or own_norm(name)
  row.pop("norm", None)
  check_choice(setting_name("model.stem"), stem, STEMS)
  check_choice(setting_name("model.shortcut"), shortcut, SHORTCUTS)
  check_choice(setting_name("model.norm"), norm, NORMS)
  if num_classes is not None and num_classes < 1:
    raise UserError(f"{setting_name('model.num_classes')}={num_classes} must be > 0")
  if not 0 <= stochastic_depth < 1:
    raise UserError(
      f"config.model.stochastic_depth={stochastic_depth} must be in [0, 1)"
    )
  if zero_init_residual and norm in ("frozen", "none"):
    raise UserError(
      "config.model.zero_init_residual=True with "
      f"config.model.norm={norm!r} is impossible, as this norm "
      "has no trainable scale; set one of them to its default"
    )
  options: Row = {
    "zero_init_residual": zero_init_residual,
    "stochastic_depth": stochastic_depth,
  }
  for field, value in options.items():
    if value and shortcut == "none":
      raise UserError(
        f"config.model.{field}={value} needs shortcuts, as the output would otherwise "
        "not depend on the images; set it to its default or choose a shortcut"
      )
  row |= {"stem_cls": STEMS[stem], "shortcut_cls": SHORTCUTS[shortcut]}
  row["norm_cls"] = NORMS[norm]
  if num_classes is not None:
    row["num_classes"] = num_classes
  return ResNet(**row, **options, scan=scan, remat=remat, dtype=dtype)


ResNet18 = partial(create_model, "resnet18")
ResNet34 = partial(create_model, "resnet34")
ResNet50 = partial(create_model, "resnet50")
ResNet101 = partial(create_model, "resnet101")
ResNet152 = partial(create_model, "resnet152")


def build_model(config: Config) -> nn.Module:
  """Builds the network that resolved settings describe, such as a saved `config.json`.

  Raises:
    UserError: the architecture is unknown, the network lacks a group of parameters that
      the settings name, or the user's own network is not a Flax module.
  """
  if config.model.factory:
    settings = config.model
    model = call_factory(
      settings.factory, "model.factory", settings, returns=(nn.Module,)
    )
  else:
    values = dataclasses.asdict(config.model)
    values.pop("factory")
    model = create_model(**values)
  if groups := getattr(model, "groups", ()):
    check_multipliers(config.optim.learning_rate_multipliers, groups)
  return with_frozen(model, config.freeze)


def with_frozen(model: nn.Module, frozen: tuple[str, ...]) -> nn.Module:
  """Returns the network with some groups in evaluation mode during training.

  Raises:
    UserError: the network has no such groups, or no field `frozen`; or "body" is frozen
      and `scan` is on.
  """
  if not frozen:
    return model
  _check_fields(model, ["frozen"], "freeze", "a network")
  changed = model.clone(frozen=frozen)
  # A network without `groups` is checked later, when its parameters are known.
  if groups := getattr(changed, "groups", ()):
    check_frozen(frozen, groups, has_body=isinstance(changed, ResNet))
  is_uniform = isinstance(changed, ResNet) and changed.pre_activation
  if BODY in frozen and getattr(changed, "scan", False) and not is_uniform:
    raise UserError(
      f"config.freeze={','.join(frozen)} needs config.model.scan=False, as the last "
      "norm is trained and the same norm of the other blocks is not",
      setting="model.scan",
    )
  return changed


def with_norm(model: nn.Module, setting: str, **values: Any) -> nn.Module:
  """Returns the network with new values of its norms' fields.

  Raises:
    UserError: the network has no field `norm_cls`, or its norms lack a field that
      `setting` needs.
  """
  name = "norm_cls"
  if "norm" in _field_names(model) and name not in _field_names(model):
    name = "norm"
    warn_of_old_name(type(model), name)
  _check_fields(model, {name}, setting, "a network")
  norm: Any = getattr(model, name)
  _check_fields(norm(), values, setting, "norms")
  changed: dict[str, Any] = {name: partial(norm, **values)}
  return model.clone(**changed)


def _field_names(module: nn.Module) -> set[str]:
  return {field.name for field in dataclasses.fields(module)}


def _check_fields(
  module: nn.Module, needed: Iterable[str], setting: str, what: str
) -> None:
  if missing := [name for name in needed if name not in _field_names(module)]:
    raise UserError(
      f"config.{setting} needs {what} with the field {', '.join(missing)}, which "
      f"{type(module).__name__} does not have; leave the setting at its default",
      setting=setting,
    )
