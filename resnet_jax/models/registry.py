"""Builds networks by name or from settings."""

from functools import partial

import jax.numpy as jnp
from jax.typing import DTypeLike

from resnet_jax.config.allowed import check_choice
from resnet_jax.models.architectures import MODELS, Row
from resnet_jax.models.norms import NORMS
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
