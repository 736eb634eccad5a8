"""The named architectures, as one table of rows, and the function that builds them."""

from functools import partial

import jax.numpy as jnp
from jax.typing import DTypeLike

from resnet_jax.config import check_choice
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.models.layers import (
  CifarStem,
  IdentityShortcut,
  ImageNetStem,
  NoShortcut,
  ProjectionShortcut,
)
from resnet_jax.models.resnet import ResNet

STEMS = {"imagenet": ImageNetStem, "cifar": CifarStem}
SHORTCUTS = {
  "A": IdentityShortcut,
  "B": ProjectionShortcut,
  "C": partial(ProjectionShortcut, always=True),
  "none": NoShortcut,
}

_IMAGENET = {"stem": "imagenet", "features": 64, "shortcut": "B", "num_classes": 1000}
_CIFAR = {"stem": "cifar", "features": 16, "shortcut": "A", "num_classes": 10}
_BASIC = _IMAGENET | {"block": BasicBlock}
_BOTTLENECK = _IMAGENET | {"block": BottleneckBlock}

MODELS: dict[str, dict] = {
  # He et al. 2015, table 1.
  "resnet18": _BASIC | {"stage_sizes": (2, 2, 2, 2)},
  "resnet34": _BASIC | {"stage_sizes": (3, 4, 6, 3)},
  "resnet50": _BOTTLENECK | {"stage_sizes": (3, 4, 6, 3)},
  "resnet101": _BOTTLENECK | {"stage_sizes": (3, 4, 23, 3)},
  "resnet152": _BOTTLENECK | {"stage_sizes": (3, 8, 36, 3)},
  # Section 4.2: 6n + 2 layers for 32x32 images.
  **{
    f"resnet{6 * n + 2}": _CIFAR | {"block": BasicBlock, "stage_sizes": (n, n, n)}
    for n in (1, 2, 3, 5, 7, 9, 18, 200)
  },
}
# The plain twin of each: the same layers, no shortcuts.
MODELS |= {
  name.replace("resnet", "plain"): row | {"shortcut": "none"}
  for name, row in MODELS.items()
}


def create_model(
  name: str,
  num_classes: int | None = None,
  *,
  stem: str = "",
  shortcut: str = "",
  zero_init_residual: bool = False,
  dtype: DTypeLike = jnp.float32,
) -> ResNet:
  """Builds a named architecture.

  Args:
    name: a key of `MODELS`, such as "resnet50", or "plain20" without shortcuts.
    num_classes: number of logits; None is 1000 for ImageNet nets, 10 for CIFAR's.
    stem: "imagenet" (7x7 at stride 2, max-pool), "cifar" (3x3), or "" for the
      architecture's own. "cifar" fits images of about 64 pixels or less.
    shortcut: "A", "B", "C", "none" (paper, section 3.3), or "" for its own.
    zero_init_residual: start every block as its shortcut.
    dtype: of the computation; parameters and logits are float32.

  Returns:
    A Flax module, to be used by `model.init` and `model.apply`.

  Raises:
    ValueError: an unknown name, stem or shortcut; or `zero_init_residual` without
      shortcuts, which would make the output constant.
  """
  check_choice("model.name", name, MODELS)
  row = dict(MODELS[name])
  stem = stem or row["stem"]
  shortcut = shortcut or row["shortcut"]
  check_choice("model.stem", stem, STEMS)
  check_choice("model.shortcut", shortcut, SHORTCUTS)
  if zero_init_residual and shortcut == "none":
    raise ValueError(
      "model.zero_init_residual=True would make a net without shortcuts constant; "
      "set it to False or choose shortcut A, B or C"
    )
  row |= {"stem": STEMS[stem], "shortcut": SHORTCUTS[shortcut]}
  if num_classes is not None:
    row["num_classes"] = num_classes
  return ResNet(**row, zero_init_residual=zero_init_residual, dtype=dtype)


ResNet18 = partial(create_model, "resnet18")
ResNet34 = partial(create_model, "resnet34")
ResNet50 = partial(create_model, "resnet50")
ResNet101 = partial(create_model, "resnet101")
ResNet152 = partial(create_model, "resnet152")
