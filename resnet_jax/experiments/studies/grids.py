"""The studies as data: which networks, at which scale, and what is claimed of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resnet_jax.config import recipes
from resnet_jax.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Scale:
  """How long and on which images.

  Attributes:
    text: in a few words.
    config: makes the settings that all runs start from.
    seeds: how many runs of each network, unless the study says otherwise.
  """

  text: str
  config: Callable[[], Config]
  seeds: int


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """One line of a study's figure: what all its runs have in common.

  Attributes:
    label: its name, and the beginning of that of its runs' directories.
    settings: what differs from the scale's, by path.
    series: the lines that share a panel of the curves, and a line over depth.
    depth: weighted layers.
  """

  label: str
  settings: Mapping[str, Any]
  series: str
  depth: int


@dataclasses.dataclass(frozen=True)
class Claim:
  """That one variant's number is above another's, or not below it.

  Attributes:
    text: in words.
    higher, lower: labels.
    metric: "train_error" or "test_error" in %, or what `outcomes.py` makes of a
      measurement.
    margin: how far below counts as not below.
  """

  text: str
  higher: str
  lower: str
  metric: str = "train_error"
  margin: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A question, the networks that answer it, and what the paper claims.

  Attributes:
    title: the question's name.
    text: what the paper says, and where.
    variants: by scale; a study may not have all scales.
    claims: those whose labels a scale has are checked there.
    seeds: number of runs of each network, by scale, where it is not the scale's.
    measure: made of each trained network: see `diagnostics.MEASUREMENTS`; "" is none.
    over_depth: whether the errors are drawn over depth too.
  """

  title: str
  text: str
  variants: Mapping[str, Sequence[Variant]]
  claims: Sequence[Claim]
  seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
  measure: str = ""
  over_depth: bool = False


def _net(name: str, label: str = "", series: str = "", **settings: Any) -> Variant:
  """A named network; `settings` have "__" for the dots of their paths."""
  kind = name.rstrip("0123456789")
  depth = int(name.removeprefix(kind))
  paths = {path.replace("__", "."): value for path, value in settings.items()}
  if depth >= 100:  # They would compile for minutes.
    paths["model.scan"] = True
  return Variant(
    label=label or name,
    settings={"model.name": name, **paths},
    series=series or ("residual" if kind == "resnet" else kind),
    depth=depth,
  )


def _twins(*depths: int, **settings: Any) -> list[Variant]:
  """Plain and residual nets of the same depths."""
  names = [f"{kind}{depth}" for kind in ("plain", "resnet") for depth in depths]
  return [_net(name, **settings) for name in names]


def _paper(variants: Sequence[Variant]) -> list[Variant]:
  """The same, the deep ones but for plain nets with the paper's warmup."""
  return [
    dataclasses.replace(variant, settings={**variant.settings, **recipes.WARMUP})
    if variant.depth >= 110 and not variant.settings["model.name"].startswith("plain")
    else variant
    for variant in variants
  ]


def _shortcuts(depth: int, *others: Variant) -> list[Variant]:
  """The three options at one depth, and `others`."""
  options = [
    _net(f"resnet{depth}", f"option {x}", "shortcuts", model__shortcut=x) for x in "ABC"
  ]
  return [*options, *others]


def _unlike(depth: int) -> list[Variant]:
  """Shortcuts that the paper does without: gated ones, and none."""
  return [
    _net(f"highway{depth}", "gated", "shortcuts"),
    _net(f"plain{depth}", "none", "shortcuts"),
  ]


def _warmup(depth: int, warmup: Mapping[str, Any] | None = None) -> list[Variant]:
  """With warmup, the scale's unless it is given, and without, at the paper's rate."""
  name, rate = f"resnet{depth}", {"optim__learning_rate": 0.1}
  with_it = _net(name, "with warmup", "warmup", **rate)
  return [
    dataclasses.replace(with_it, settings={**with_it.settings, **(warmup or {})}),
    _net(name, "without warmup", "warmup", optim__warmup_steps=0, **rate),
  ]


def _blocks(basic: str, bottleneck: str) -> list[Variant]:
  return [_net(basic, "", "blocks"), _net(bottleneck, "", "blocks")]


def _norms(depth: int) -> list[Variant]:
  """With and without batch norm."""
  return [
    _net(f"{kind}{depth}", f"{kind}{depth}, {text}", kind, model__norm=norm)
    for kind in ("plain", "resnet")
    for norm, text in (("batch", "batch norm"), ("none", "no norm"))
  ]


def _no_worse(shallow: str, deep: str) -> Claim:
  text = "The deeper residual net trains no worse, by a point at most."
  return Claim(text, shallow, deep, margin=1.0)


_CIFAR_DEPTHS = 20, 32, 44, 56, 110
_TWINS = {
  "smoke": _twins(20, 56),
  "short": _twins(20, 56),
  "paper": _paper(_twins(*_CIFAR_DEPTHS)),
}
# What the gradients are looked at in: the state of each evaluation.
_KEPT = {"checkpoint__keep": 40, "checkpoint__every_steps": 0}

STUDIES = {
  "degradation": Study(
    title="Degradation",
    text="Plain nets get worse with depth, on the training images already; residual "
    "nets do not (He et al. 2015, section 4.1, table 2 and figure 4; section 4.2, "
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
      Claim("The deeper plain net trains worse.", "plain56", "plain20"),
      _no_worse("resnet20", "resnet56"),
      Claim("The deep plain net trains worse than its twin.", "plain56", "resnet56"),
      Claim("The deepest plain net trains worse still.", "plain110", "plain56"),
      Claim("The deeper plain net trains worse.", "plain34", "plain18"),
      _no_worse("resnet18, A", "resnet34, A"),
    ),
    over_depth=True,
  ),
  "shortcuts": Study(
    title="Shortcuts",
    text="Identity shortcuts without parameters (option A) are enough; projections "
    "where shapes change (B) or everywhere (C) differ little (He et al. 2015, section "
    "4.1, table 3). Gates and projections in deep nets hinder them (He et al. 2016, "
    '"Identity mappings", section 3.1, table 1).',
    variants={
      "smoke": _shortcuts(44, *_unlike(44)),
      "short": _shortcuts(20, *_unlike(20)),
      "paper": _paper(_shortcuts(110, *_unlike(110))),
      "imagenet": _shortcuts(34, _net("plain34", "none", "shortcuts")),
    },
    claims=(
      Claim("Without shortcuts training is worse.", "none", "option A"),
      Claim("Gated shortcuts train worse.", "gated", "option A"),
      Claim("Projections everywhere test worse.", "option C", "option A", "test_error"),
    ),
  ),
  "depth": Study(
    title="Depth",
    text="Residual nets gain from depth up to 110 layers; 1,202 train as well, and "
    "overfit (He et al. 2015, section 4.2, table 6).",
    variants={
      "smoke": [_net(f"resnet{depth}") for depth in (8, 20, 56)],
      "short": [_net(f"resnet{depth}") for depth in (8, 20, 56)],
      "paper": _paper([_net(f"resnet{depth}") for depth in (*_CIFAR_DEPTHS, 1202)]),
    },
    claims=(
      Claim("20 layers train better than 8.", "resnet8", "resnet20"),
      Claim("56 layers train better than 20.", "resnet20", "resnet56"),
      Claim("110 layers train better than 56.", "resnet56", "resnet110"),
      Claim("1,202 layers overfit.", "resnet1202", "resnet110", "test_error"),
    ),
    over_depth=True,
  ),
  "warmup": Study(
    title="Warmup",
    text="A learning rate of 0.1 is slightly too large for ResNet-110 to start "
    "converging; warmed up, it trains well (He et al. 2015, section 4.2).",
    variants={
      "smoke": _warmup(110),
      "short": _warmup(56),
      "paper": _warmup(110, recipes.WARMUP),
    },
    claims=(Claim("Warmup helps.", "without warmup", "with warmup"),),
  ),
  "blocks": Study(
    title="Blocks",
    text="Bottleneck blocks cost as much as basic ones and give a deeper net, which is "
    "better (He et al. 2015, section 4.1, table 1 and figure 5; for CIFAR-10 He et al. "
    '2016, "Identity mappings", table 3: 110 and 164 layers).',
    variants={
      "smoke": _blocks("resnet20", "resnet29"),
      "short": _blocks("resnet20", "resnet29"),
      "paper": _paper(_blocks("resnet110", "resnet164")),
      "imagenet": _blocks("resnet34", "resnet50"),
    },
    claims=(
      Claim("Bottlenecks test better.", "resnet20", "resnet29", "test_error"),
      Claim("Bottlenecks test better.", "resnet110", "resnet164", "test_error"),
      Claim("Bottlenecks test better.", "resnet34", "resnet50", "test_error"),
    ),
    seeds={"short": 3},
  ),
  "normalisation": Study(
    title="Normalisation",
    text="Batch norm after each convolution keeps signals and gradients at a healthy "
    "size, so that deep nets start to converge at a high learning rate (He et al. "
    "2015, section 3.4 and 4.1; Ioffe & Szegedy 2015). Without it a convolution adds a "
    "bias, and nothing else changes.",
    variants={"smoke": _norms(20), "short": _norms(20), "paper": _norms(20)},
    claims=(
      Claim("Batch norm helps plain nets.", "plain20, no norm", "plain20, batch norm"),
      Claim(
        "Batch norm helps residual nets.", "resnet20, no norm", "resnet20, batch norm"
      ),
    ),
  ),
  "responses": Study(
    title="Responses",
    text="Residual nets' layers respond less strongly than plain nets', and the less, "
    "the deeper: each changes its input a little (He et al. 2015, section 4.2, figure "
    "7: standard deviations after batch norm, before ReLU and the shortcut).",
    variants=_TWINS,
    claims=(
      Claim("Residual layers respond less.", "plain56", "resnet56", "response"),
      Claim("And less in a deeper net.", "resnet20", "resnet56", "response"),
    ),
    seeds={"short": 1, "paper": 1},
    measure="responses",
  ),
  "gradients": Study(
    title="Gradients",
    text="With batch norm gradients do not vanish in deep plain nets: that is not why "
    "they train badly (He et al. 2015, section 4.1). Norm of the loss's gradient by "
    "each convolution's kernel, at the start and later.",
    variants=dict.fromkeys(("smoke", "short", "paper"), _twins(20, 56, **_KEPT)),
    claims=(
      Claim("They grow towards a plain net's start.", "plain56", "resnet56", "growth"),
    ),
    seeds={"short": 1, "paper": 1},
    measure="gradients",
  ),
}
