"""The named architectures, as one table of rows, and the function that builds them."""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from resnet_jax.config.allowed import check_choice
from resnet_jax.config.factories import call_factory
from resnet_jax.config.schema import Config
from resnet_jax.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet_jax.models.groups import check_frozen, check_multipliers
from resnet_jax.models.layers import ModuleDef, SqueezeExcite
from resnet_jax.models.norms import NORMS
from resnet_jax.models.old_names import warn_of_old_name
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEMS
from resnet_jax.runtime.errors import UserError, setting_name

Row = dict[str, Any]

_IMAGENET: Row = {"stem": "imagenet", "shortcut": "B", "num_classes": 1000}
_CIFAR: Row = {"stem": "cifar", "shortcut": "A", "num_classes": 10, "features": 16}
_WIDE_CIFAR = _CIFAR | {
  "shortcut": "B",
  "block_cls": PreActBasicBlock,
  "pre_activation": True,
  "stem_features": 16,
  "dropout": 0.3,
}
# He et al. 2015, table 1; 200: He et al. 2016.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_DEEPEST = {200: (3, 24, 36, 3)}


def _imagenet(
  name: str, sizes: Mapping[int, tuple[int, ...]], block: ModuleDef, **row: Any
) -> dict[str, Row]:
  """Returns one row per depth for a kind of block; `name` has {} for the depth."""
  return {
    name.format(depth): _IMAGENET | {"block_cls": block, "stage_sizes": size} | row
    for depth, size in sizes.items()
  }


def _bottleneck(**kwargs: Any) -> ModuleDef:
  return partial(BottleneckBlock, **kwargs)


# The networks of He et al. 2015. Where the paper leaves a choice, they follow
# torchvision ("v1.5").
_RESIDUAL = (
  _imagenet("resnet{}", _BASIC, BasicBlock)
  | _imagenet("resnet{}", _BOTTLENECK, BottleneckBlock)
  # Section 4.2: 6n + 2 layers for 32x32 images.
  | {
    f"resnet{6 * n + 2}": _CIFAR | {"block_cls": BasicBlock, "stage_sizes": (n, n, n)}
    for n in (1, 2, 3, 5, 7, 9, 18, 200)
  }
)
# Bottleneck networks for 32x32 images: 9n + 2 layers. Each block costs about as much as
# a basic one (He et al. 2016, table 3).
_SMALL_BOTTLENECK = {
  f"resnet{9 * n + 2}": _CIFAR
  | {"block_cls": BottleneckBlock, "shortcut": "B", "stage_sizes": (n, n, n)}
  for n in (3, 18)
}


def _twins(kind: str, shortcut: str) -> dict[str, Row]:
  """Returns the rows of `_RESIDUAL` with another shortcut in all blocks."""
  return {
    name.replace("resnet", kind): row | {"shortcut": shortcut}
    for name, row in _RESIDUAL.items()
  }


MODELS: dict[str, Row] = {
  **_RESIDUAL,
  **_SMALL_BOTTLENECK,
  **_twins("plain", "none"),
  **_twins("highway", "highway"),
  # The stride is on the first 1x1 convolution, as in the paper.
  **_imagenet("resnetv1_{}", _BOTTLENECK, _bottleneck(stride_on_1x1=True)),
  # Pre-activation: He et al. 2016, "Identity mappings", table 3 and 5.
  **_imagenet("resnetv2_{}", _BASIC, PreActBasicBlock, pre_activation=True),
  **_imagenet(
    "resnetv2_{}", _BOTTLENECK | _DEEPEST, PreActBottleneckBlock, pre_activation=True
  ),
  **{
    # 9n + 2 layers.
    f"resnetv2_{9 * n + 2}": _CIFAR
    | {
      "shortcut": "B",
      "block_cls": PreActBottleneckBlock,
      "stage_sizes": (n, n, n),
      "pre_activation": True,
    }
    for n in (18, 111)
  },
  # Wide ResNets: Zagoruyko & Komodakis 2016, 6n + 4 layers, k times as wide.
  **_imagenet(
    "wide_resnet{}_2",
    {depth: _BOTTLENECK[depth] for depth in (50, 101)},
    _bottleneck(base_width=128),
  ),
  **{
    f"wide_resnet{6 * n + 4}_{k}": _WIDE_CIFAR
    | {"stage_sizes": (n, n, n), "features": 16 * k}
    for n, k in ((2, 8), (4, 10))
  },
  # ResNeXt: Xie et al. 2016; number of groups x width of a group.
  **{
    f"resnext{depth}_{groups}x{width}d": _IMAGENET
    | {
      "block_cls": _bottleneck(groups=groups, base_width=width),
      "stage_sizes": _BOTTLENECK[depth],
    }
    for depth, groups, width in ((50, 32, 4), (101, 32, 8), (101, 64, 4))
  },
  # Squeeze-and-excitation: Hu et al. 2017.
  **_imagenet("seresnet{}", _BASIC, partial(BasicBlock, attention_cls=SqueezeExcite)),
  **_imagenet("seresnet{}", _BOTTLENECK, _bottleneck(attention_cls=SqueezeExcite)),
  # The tweaks of He et al. 2018, "Bag of tricks", figure 2.
  **_imagenet("resnet{}c", _BOTTLENECK, BottleneckBlock, stem="deep"),
  **_imagenet("resnet{}d", _BASIC, BasicBlock, stem="deep", shortcut="D"),
  **_imagenet("resnet{}d", _BOTTLENECK, BottleneckBlock, stem="deep", shortcut="D"),
}


def create_model(
  name: str,
  num_classes: int | None = None,
  *,
  stem: str = "",
  shortcut: str = "",
  norm: str = "batch",
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
      "cifar" (3x3), or "" for the architecture's own. "cifar" suits images of at most
      about 64 pixels per side.
    shortcut: "A", "B", "C" (paper, section 3.3), "D" (average-pooled B), "highway",
      "none", or "" for the architecture's own.
    norm: "batch", "unbiased_batch" (running variance as in PyTorch), "group", "frozen"
      (batch norm with constant statistics, scale and bias) or "none" (only a bias);
      see `norms.py`.
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
      f"config.model.norm={norm!r} has no scale that could "
      "start at 0 and learn; set one of them to its default"
    )
  options: Row = {
    "zero_init_residual": zero_init_residual,
    "stochastic_depth": stochastic_depth,
  }
  for field, value in options.items():
    if value and shortcut == "none":
      raise UserError(
        f"config.model.{field}={value} would make a net without shortcuts constant; "
        "set it to its default or choose a shortcut"
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
    UserError: the network has no such groups, or no field `frozen`.
  """
  if not frozen:
    return model
  _check_fields(model, ["frozen"], "freeze", "a network")
  changed = model.clone(frozen=frozen)
  # Without `groups`, the names are checked once the parameters are known.
  if groups := getattr(changed, "groups", ()):
    check_frozen(frozen, groups)
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
