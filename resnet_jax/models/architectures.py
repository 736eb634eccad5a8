"""The named architectures, as one table of rows.

A row has the fields of a `ResNet`; "stem", "shortcut" and "norm" are keys of `STEMS`,
`SHORTCUTS` and `NORMS`.
"""

import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from resnet_jax.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet_jax.models.layers import (
  EfficientChannelAttention,
  ModuleDef,
  SqueezeExcite,
  StandardizedConv,
)
from resnet_jax.models.pooling import average_pool, blur_pool

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
# Blocks of each stage, by depth. 18 to 152 are from He et al. 2015, table 1, and 200 is
# from He et al. 2016. The others are timm's.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_DEEPEST = {200: (3, 24, 36, 3)}
_OTHER_DEPTHS = _DEEPEST | {
  **{14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 201: (3, 24, 36, 4), 269: (3, 30, 48, 8)},
  # ResNet-RS: Bello et al. 2021, table 7 (its depths 101 to 200 are those above).
  **{270: (4, 29, 53, 4), 350: (4, 36, 72, 4), 420: (4, 44, 87, 4)},
}


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


# The name of a network of timm, such as seresnextaa101d_32x8d.
_NAME = re.compile(r"(se|eca|)resne(x?)t(aa|blur|rs|)(\d+)([cdst]?)(?:_(\d+)x(\d+)d)?")
_ATTENTION = {"": None, "se": SqueezeExcite, "eca": EfficientChannelAttention}
_POOLS = {"aa": ("_average", average_pool), "blur": ("_blur", blur_pool)}
# The endings of He et al. 2018, "Bag of tricks", figure 2 (c, d), and of timm.
_ENDINGS: dict[str, Row] = {
  "": {},
  "c": {"stem": "deep"},
  "d": {"stem": "deep", "shortcut": "D"},
  "s": {"stem": "deep", "stem_features": 128},
  "t": {"stem": "tiered", "shortcut": "D"},
}


def _from_name(name: str, **row: Any) -> dict[str, Row]:
  """Returns the row that the parts of a name stand for.

  "se" and "eca" are kinds of channel attention (Hu et al. 2017, Wang et al. 2019);
  "aa" and "blur" are anti-aliasing (Zhang 2019) by an average or a blur; "rs" is
  ResNet-RS (Bello et al. 2021); 32x4d are 32 groups of 4 channels (Xie et al. 2016).

  Args:
    name: a name that `_NAME` matches.
    **row: values that differ from those of the name.
  """
  match = _NAME.fullmatch(name)
  assert match
  attention, _x, kind, number, ending, groups, width = match.groups()
  depth = int(number)
  options: Row = {"attention_cls": _ATTENTION[attention]}
  made: Row = _IMAGENET | _ENDINGS[ending]
  if kind == "rs":
    options["attention_cls"] = partial(SqueezeExcite, reduction=4)
    made |= {"stem": "deep_conv", "shortcut": "D"}
  elif kind:
    pool_name, options["anti_alias"] = _POOLS[kind]
    made["stem"] += pool_name
  if groups:
    options |= {"groups": int(groups), "base_width": int(width)}
  basic = {10: (1, 1, 1, 1)} | _BASIC
  block = BasicBlock if depth in basic else BottleneckBlock
  sizes = (basic | _BOTTLENECK | _OTHER_DEPTHS)[depth]
  changed = {key: value for key, value in options.items() if value is not None}
  made |= {"stage_sizes": sizes, "block_cls": partial(block, **changed)}
  return {name: made | row}


_NAMES = """
resnet10t resnet14t resnet26 resnet26d resnet26t resnet200 resnet200d
resnet18d resnet34d resnet50d resnet101d resnet152d
resnet50c resnet101c resnet152c resnet50s resnet101s resnet152s resnet50t
resnext50_32x4d resnext50d_32x4d resnext101_64x4d
resnext101_32x4d resnext101_32x8d resnext101_32x16d resnext101_32x32d
seresnet18 seresnet34 seresnet50 seresnet101 seresnet152
seresnet50t seresnet152d seresnet200d seresnet269d
seresnext26d_32x4d seresnext26t_32x4d seresnext50_32x4d
seresnext101_32x4d seresnext101_32x8d seresnext101_64x4d seresnext101d_32x8d
ecaresnet26t ecaresnet50d ecaresnet50t ecaresnet101d ecaresnet200d ecaresnet269d
ecaresnext26t_32x4d ecaresnext50t_32x4d
resnetaa34d resnetaa50 resnetaa50d resnetaa101d seresnetaa50d seresnextaa101d_32x8d
resnetblur18 resnetblur50 resnetblur50d resnetblur101d
resnetrs50 resnetrs101 resnetrs152 resnetrs200 resnetrs270 resnetrs350 resnetrs420
"""


def in_timm(name: str) -> bool:
  """Whether timm 1.0 has an architecture, under the same name."""
  ours = ("plain", "highway", "resnetv1_")
  is_ours = name.startswith(ours) or name.endswith(("v2_200", "_keras"))
  return not is_ours and MODELS[name]["stem"] != "cifar"


def _preact(name: str, sizes: Mapping[int, tuple[int, ...]], **row: Any) -> Any:
  block = PreActBasicBlock if sizes is _BASIC else PreActBottleneckBlock
  return _imagenet(name, sizes, block, pre_activation=True, **row)


# Big Transfer (Kolesnikov et al. 2019): depth x width.
_BIT = {
  f"resnetv2_{depth}x{width}_bit": _preact(
    "resnetv2_{}",
    {depth: _BOTTLENECK[depth]},
    stem="imagenet_zeros",
    conv_cls=partial(StandardizedConv, epsilon=1e-8),
    norm="group",
    features=64 * width,
  )[f"resnetv2_{depth}"]
  for depth, width in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
}
_DEEP_V2 = {"stem": "deep", "shortcut": "D"}
_V2_50 = {50: _BOTTLENECK[50]}

# Read-only: other processes and later commands would not know an entry of a user.
MODELS: Mapping[str, Row] = MappingProxyType(
  {
    **_RESIDUAL,
    **_SMALL_BOTTLENECK,
    **_twins("plain", "none"),
    **_twins("highway", "highway"),
    **{key: row for name in _NAMES.split() for key, row in _from_name(name).items()},
    # Networks with parts that their names do not show.
    **_from_name("seresnextaa201d_32x8d", stem_features=128),
    "resnet50_gn": _RESIDUAL["resnet50"] | {"norm": "group"},
    "ecaresnetlight": _from_name("ecaresnet50d")["ecaresnet50d"]
    | {"stem": "imagenet", "stage_sizes": (1, 1, 11, 3)},
    # Hu et al. 2017, section 6.1.
    "senet154": _from_name("seresnext101_64x4d")["seresnext101_64x4d"]
    | {
      "stage_sizes": _BOTTLENECK[152],
      "stem": "deep",
      "stem_features": 128,
      "shortcut": "B3x3",
      "block_cls": _bottleneck(
        attention_cls=SqueezeExcite, groups=64, base_width=4, first_reduction=2
      ),
    },
    # The stride is on the first 1x1 convolution, as in the paper.
    **_imagenet("resnetv1_{}", _BOTTLENECK, _bottleneck(stride_on_1x1=True)),
    # Pre-activation: He et al. 2016, "Identity mappings", tables 3 and 5.
    **_preact("resnetv2_{}", _BASIC),
    **_preact("resnetv2_{}", _BOTTLENECK | _DEEPEST),
    **_preact("resnetv2_{}d", _BASIC, **_DEEP_V2),
    **_preact("resnetv2_{}d", _BOTTLENECK, **_DEEP_V2),
    **_preact("resnetv2_{}t", _V2_50, stem="tiered", shortcut="D"),
    **_preact("resnetv2_{}d_gn", _V2_50, norm="group", **_DEEP_V2),
    **_preact("resnetv2_{}d_evos", _V2_50, norm="evo", **_DEEP_V2),
    **_preact("resnetv2_{}d_frn", _V2_50, norm="filter_response", **_DEEP_V2),
    **_BIT,
    # Keras puts the stride on the last block of a stage. That is the same as the stride
    # on the first 1x1 convolution of the next stage, whose input is then subsampled.
    **_imagenet(
      "resnetv2_{}_keras",
      _BOTTLENECK,
      partial(PreActBottleneckBlock, stride_on_1x1=True),
      pre_activation=True,
      stem="imagenet_bias_zeros",
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
  }
)
