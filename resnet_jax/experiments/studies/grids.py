"""The studies: their networks, their scales, and the claims about them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.config import recipes
from resnet_jax.experiments.studies.study import (
  Claim,
  Scale,
  Study,
  Variant,
  kind_of,
)

SCALES = {
  "smoke": Scale(
    "scikit-learn's handwritten digits, 8x8 pixels, 500 updates of 32 images",
    recipes.smoke,
    seeds=3,
  ),
  "short": Scale(
    "CIFAR-10, 3,500 of the paper's 64,000 updates", recipes.short, seeds=1
  ),
  "medium": Scale(
    "CIFAR-10, a quarter of the paper's 64,000 updates", recipes.medium, seeds=1
  ),
  "paper": Scale("CIFAR-10 by the paper's recipe", recipes.cifar10, seeds=5),
  "imagenet": Scale(
    "ImageNet by the paper's recipe, one crop where the paper has ten",
    recipes.imagenet,
    seeds=1,
  ),
}


def _net(name: str, label: str = "", series: str = "", **settings: Any) -> Variant:
  """Returns a network; "__" in the name of a setting stands for a dot in its path."""
  kind = kind_of(name)
  depth = int(name.removeprefix(kind))
  paths = {path.replace("__", "."): value for path, value in settings.items()}
  if depth >= 100:  # Without scan it would compile for minutes.
    paths["model.scan"] = True
  return Variant(
    label=label or name,
    settings={"model.name": name, **paths},
    series=series or ("residual" if kind == "resnet" else kind),
    depth=depth,
  )


def _twins(*depths: int, **settings: Any) -> list[Variant]:
  """Returns plain and residual networks of the same depths."""
  names = [f"{kind}{depth}" for kind in ("plain", "resnet") for depth in depths]
  return [_net(name, **settings) for name in names]


def _paper(variants: Sequence[Variant]) -> list[Variant]:
  """Adds the paper's warmup to residual networks of at least 110 layers."""
  return [
    dataclasses.replace(variant, settings={**variant.settings, **recipes.WARMUP})
    if variant.depth >= 110 and not variant.settings["model.name"].startswith("plain")
    else variant
    for variant in variants
  ]


def _shortcuts(depth: int, *others: Variant) -> list[Variant]:
  """Returns the shortcut options A, B and C at one depth, and `others`."""
  options = [
    _net(f"resnet{depth}", f"option {x}", "shortcuts", model__shortcut=x) for x in "ABC"
  ]
  return [*options, *others]


def _unlike(depth: int) -> list[Variant]:
  """Returns a network with gated shortcuts, and one without shortcuts."""
  return [
    _net(f"highway{depth}", "gated", "shortcuts"),
    _net(f"plain{depth}", "none", "shortcuts"),
  ]


def _warmup(depth: int, warmup: Mapping[str, Any] | None = None) -> list[Variant]:
  """Returns a network with and without warmup. None keeps the scale's own warmup."""
  name, rate = f"resnet{depth}", {"optim__learning_rate": 0.1}
  with_it = _net(name, "with warmup", "warmup", **rate)
  return [
    dataclasses.replace(with_it, settings={**with_it.settings, **(warmup or {})}),
    _net(name, "without warmup", "warmup", optim__warmup_steps=0, **rate),
  ]


def _blocks(basic: str, bottleneck: str) -> list[Variant]:
  return [_net(basic, "", "blocks"), _net(bottleneck, "", "blocks")]


def _norms(depth: int) -> list[Variant]:
  """Returns networks with and without batch norm."""
  return [
    _net(f"{kind}{depth}", f"{kind}{depth}, {text}", model__norm=norm)
    for kind in ("plain", "resnet")
    for norm, text in (("batch", "batch norm"), ("none", "no norm"))
  ]


def _no_worse(shallow: str, deep: str) -> Claim:
  text = (
    "The training error of the deeper residual network is not higher by more than one "
    "percentage point."
  )
  return Claim(text, shallow, deep, margin=1.0)


_CIFAR_DEPTHS = 20, 32, 44, 56, 110
_TWINS = {
  "smoke": _twins(20, 56),
  "short": _twins(20, 56),
  "paper": _paper(_twins(*_CIFAR_DEPTHS)),
}
_DEGRADES = "The deeper plain network has a higher training error."
# Gradients are measured at each evaluation's checkpoint, so no checkpoint is deleted.
_KEPT = {"checkpoint__keep": 40, "checkpoint__every_steps": 0}
_BOTTLENECKS = "The network of bottleneck blocks has a lower test error."

STUDIES = {
  "degradation": Study(
    title="Degradation",
    text="Plain networks get worse with depth, even on the training images. Residual "
    "networks do not (He et al. 2015, section 4.1, table 2 and figure 4; section 4.2, "
    "figure 6).",
    variants={
      **_TWINS,
      "medium": _twins(20, 56),
      "imagenet": [
        *(_net(name) for name in ("plain18", "plain34")),
        *(_net(f"resnet{n}", f"resnet{n}, A", model__shortcut="A") for n in (18, 34)),
      ],
    },
    claims=(
      Claim(_DEGRADES, "plain56", "plain20"),
      _no_worse("resnet20", "resnet56"),
      Claim(
        "The plain network has a higher training error than the residual network of "
        "the same depth.",
        "plain56",
        "resnet56",
      ),
      Claim(_DEGRADES, "plain110", "plain56"),
      Claim(_DEGRADES, "plain34", "plain18"),
      _no_worse("resnet18, A", "resnet34, A"),
    ),
    over_depth=True,
  ),
  "shortcuts": Study(
    title="Shortcuts",
    text="Identity shortcuts without parameters (option A) are enough. Projections "
    "where shapes change (option B) or in every block (option C) make little "
    "difference (He et al. 2015, section 4.1, table 3). In very deep networks, gates "
    'and projections in every block do harm (He et al. 2016, "Identity mappings", '
    "section 3.1, table 1).",
    variants={
      "smoke": _shortcuts(44, *_unlike(44)),
      "short": _shortcuts(20, *_unlike(20)),
      "paper": _paper(_shortcuts(110, *_unlike(110))),
      "imagenet": _shortcuts(34, _net("plain34", "none", "shortcuts")),
    },
    claims=(
      Claim(
        "The network without shortcuts has a higher training error.", "none", "option A"
      ),
      Claim("Gated shortcuts give a higher training error.", "gated", "option A"),
      Claim(
        "Projections in every block give a higher test error.",
        "option C",
        "option A",
        "test_error",
      ),
    ),
  ),
  "depth": Study(
    title="Depth",
    text="Residual networks get better with depth up to 110 layers. A network of 1,202 "
    "layers can be trained too, but it overfits (He et al. 2015, section 4.2, table "
    "6).",
    variants={
      "smoke": [_net(f"resnet{depth}") for depth in (8, 20, 56)],
      "short": [_net(f"resnet{depth}") for depth in (8, 20, 56)],
      "paper": _paper([_net(f"resnet{depth}") for depth in (*_CIFAR_DEPTHS, 1202)]),
    },
    claims=(
      Claim(
        "The 20-layer network has a lower training error than the 8-layer network.",
        "resnet8",
        "resnet20",
      ),
      Claim(
        "The 56-layer network has a lower training error than the 20-layer network.",
        "resnet20",
        "resnet56",
      ),
      Claim(
        "The 110-layer network has a lower training error than the 56-layer network.",
        "resnet56",
        "resnet110",
      ),
      Claim(
        "The 1,202-layer network has a higher test error than the 110-layer network.",
        "resnet1202",
        "resnet110",
        "test_error",
      ),
    ),
    over_depth=True,
  ),
  "warmup": Study(
    title="Warmup",
    text="A learning rate of 0.1 is slightly too large for ResNet-110 at the start. "
    "With a warmup it trains well (He et al. 2015, section 4.2).",
    variants={
      "smoke": _warmup(110),
      "short": _warmup(56),
      "paper": _warmup(110, recipes.WARMUP),
    },
    claims=(
      Claim("Warmup gives a lower training error.", "without warmup", "with warmup"),
    ),
  ),
  "blocks": Study(
    title="Blocks",
    text="Bottleneck blocks cost about as much as basic blocks and make the network "
    "deeper and better (He et al. 2015, section 4.1, table 1 and figure 5; for "
    'CIFAR-10 He et al. 2016, "Identity mappings", table 3: 110 and 164 layers).',
    variants={
      "smoke": _blocks("resnet20", "resnet29"),
      "short": _blocks("resnet20", "resnet29"),
      "paper": _paper(_blocks("resnet110", "resnet164")),
      "imagenet": _blocks("resnet34", "resnet50"),
    },
    claims=(
      Claim(_BOTTLENECKS, "resnet20", "resnet29", "test_error"),
      Claim(_BOTTLENECKS, "resnet110", "resnet164", "test_error"),
      Claim(_BOTTLENECKS, "resnet34", "resnet50", "test_error"),
    ),
    seeds={"short": 3},
  ),
  "normalisation": Study(
    title="Normalisation",
    text="Batch norm after each convolution keeps activations and gradients at a "
    "useful size, so that deep networks can start at a high learning rate (He et al. "
    "2015, section 3.4 and 4.1; Ioffe & Szegedy 2015). The networks without batch "
    "norm have a bias in each convolution instead.",
    variants={"smoke": _norms(20), "short": _norms(20), "paper": _norms(20)},
    claims=(
      Claim(
        "Batch norm lowers the training error of a plain network.",
        "plain20, no norm",
        "plain20, batch norm",
      ),
      Claim(
        "Batch norm lowers the training error of a residual network.",
        "resnet20, no norm",
        "resnet20, batch norm",
      ),
    ),
  ),
  "responses": Study(
    title="Responses",
    text="The layers of a residual network respond less strongly than those of a plain "
    "network, and less the deeper the network is: each layer changes its input only a "
    "little. A response is the standard deviation after batch norm, before ReLU and "
    "the addition (He et al. 2015, section 4.2, figure 7).",
    variants=_TWINS,
    claims=(
      Claim(
        "The layers of the residual network respond less than those of the plain one.",
        "plain56",
        "resnet56",
        "response",
      ),
      Claim(
        "The layers of the deeper residual network respond less.",
        "resnet20",
        "resnet56",
        "response",
      ),
    ),
    seeds={"short": 1, "paper": 1},
    measure="responses",
  ),
  "gradients": Study(
    title="Gradients",
    text="With batch norm, gradients do not vanish in deep plain networks, so "
    "vanishing gradients are not why these networks train badly (He et al. 2015, "
    "section 4.1). This study measures the norm of the gradient for the kernel of "
    "each convolution, before and during training.",
    variants=dict.fromkeys(("smoke", "short", "paper"), _twins(20, 56, **_KEPT)),
    claims=(
      Claim(
        "Gradients grow towards the first layer more in the plain network than in the "
        "residual one.",
        "plain56",
        "resnet56",
        "growth",
      ),
    ),
    seeds={"short": 1, "paper": 1},
    measure="gradients",
  ),
}
