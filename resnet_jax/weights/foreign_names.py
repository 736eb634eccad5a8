"""The names that other libraries give to the tensors of a residual network.

They are translated to those of torchvision and timm (`torch_names.py`).
"""

import re
from collections.abc import Callable, Collection

from resnet_jax.runtime.errors import UserError

# Added by DataParallel and by torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# The first components of the names of timm.
_FIRST = re.compile(r"(conv1|bn1|maxpool|layer\d+|stem|stages|norm)\.")
# The tensors that only the first layer of a network has.
FIRST_KERNELS = (
  *("conv1.weight", "conv1.0.weight", "stem.conv.weight", "stem.conv1.weight"),
)
# The prefix of a convolution that is not the first, or has a longer name itself.
_IN_STAGE = re.compile(r"(layer|stages\.)\d|(^|\.)stem\.$")
_EMA = re.compile(r"(^|[._])ema[._]", re.IGNORECASE)
_MOST_NETWORKS = 100  # Counting the names of each takes time.
# A linear layer, alone or after dropout.
_HEAD = re.compile(r"^(?:fc|linear|classifier|head\.fc)(?:\.\d+)?\.(weight|bias)$")

# The prefix of the backbone in a detector of torchvision.
BODY = "backbone.body."

_Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def _block(offset: int) -> Callable[[re.Match[str]], str]:
  """Returns a function that names a block from the numbers of its stage and itself.

  Args:
    offset: difference between the number of a stage in timm and in the other library.
  """

  def name(match: re.Match[str]) -> str:
    stage, block, *rest = match.groups()
    first = f"layer{int(stage) + offset}.{block}."
    if len(rest) == 2:  # The number of a layer, and its kind.
      return f"{first}{_KINDS[rest[1]]}{int(rest[0]) + (offset > 0)}."
    return f"{first}downsample.{[*_KINDS].index(rest[0]) % 2}."

  return name


_KINDS = {"convolution": "conv", "normalization": "bn", "": "conv", "norm.": "bn"}
_STAGE = r"encoder\.stages\.(\d{1,4})\.layers\.(\d{1,4})\."
_PART = r"(convolution|normalization)\."
_TRANSFORMERS: list[_Rule] = [
  (r"embedder\.embedder\.convolution\.", "conv1."),
  (r"embedder\.embedder\.normalization\.", "bn1."),
  (rf"{_STAGE}layer\.(\d)\.{_PART}", _block(1)),
  (rf"{_STAGE}shortcut\.{_PART}", _block(1)),
  # BiT; the other names are timm's.
  (r"embedder\.convolution\.", "stem.conv."),
  (_STAGE, r"stages.\1.blocks.\2."),
]
_DETECTRON: list[_Rule] = [
  (r"stem\.conv1\.norm\.", "bn1."),
  (r"stem\.conv1\.", "conv1."),
  (r"res(\d)\.(\d{1,4})\.conv(\d)\.(norm\.|)", _block(-1)),
  (r"res(\d)\.(\d{1,4})\.shortcut\.(norm\.|)", _block(-1)),
]
# Before torchvision 0.13, layers without a norm had no number of their own.
_OLD_DETECTORS: list[_Rule] = [
  (r"(inner|layer)_blocks\.(\d)\.(weight|bias)$", r"\1_blocks.\2.0.\3"),
  (
    r"_head\.conv\.([0246])\.(weight|bias)$",
    lambda match: f"_head.conv.{int(match[1]) // 2}.0.{match[2]}",
  ),
]
# kuangliu/pytorch-cifar and akamaster/pytorch_resnet_cifar10 say "shortcut".
_OTHERS: list[_Rule] = [(r"\.shortcut\.", ".downsample.")]


def to_timm(
  names: Collection[str], ema: bool | None = None
) -> tuple[dict[str, str], str]:
  """Translates the names of a state dict.

  Names of torchvision, timm, transformers, Detectron2, MMPretrain and of repositories
  for CIFAR are known, also under one common prefix such as "backbone.".

  Args:
    names: names of tensors.
    ema: which of two networks to take: the one whose prefix contains "ema", for an
      exponential moving average, or the other one.

  Returns:
    The name in timm of each tensor of the network, by its own name; and the prefix.
    Tensors beside a network with a prefix are left out, such as those of a loss.

  Raises:
    UserError: the names are those of several networks, and `ema` does not choose; or
      there is no such network.
  """
  rules = _OTHERS
  if any("encoder.stages." in name for name in names):
    rules = _TRANSFORMERS
  elif any(re.search(r"(^|\.)res2\.0\.", name) for name in names):
    rules = _DETECTRON
  translated = {name: _translate(name, rules) for name in names}
  prefix = _prefix(translated.values(), ema)
  parts = prefix.split(".")[:-1]
  # A head is often beside a backbone, under a part of its prefix.
  parents = [".".join([*parts[:i], ""]) if i else "" for i in range(len(parts))]
  is_v2 = any(found.startswith(f"{prefix}stages.") for found in translated.values())
  head = "head.fc" if is_v2 else "fc"  # timm's names.
  inside, beside = {}, {}
  for name, found in translated.items():
    if found.startswith(prefix):
      inside[name] = _HEAD.sub(rf"{head}.\1", found.removeprefix(prefix))
    else:
      rests = [found.removeprefix(parent) for parent in parents]
      if match := next(filter(None, map(_HEAD.match, rests)), None):
        beside[name] = f"{head}.{match[1]}"
  # Several layers beside a backbone are no classifier. A segmenter has such a head.
  is_head = len(set(beside.values())) == len(beside)
  return inside | (beside if is_head else {}), prefix


def to_segmenter(
  names: Collection[str], ema: bool | None = None
) -> tuple[dict[str, str], str]:
  """Translates the names of the state dict of a network for semantic segmentation.

  torchvision's names are known, also under one common prefix such as "model.".

  Args:
    names: names of tensors.
    ema: as in `to_timm`.

  Returns:
    The name in torchvision of each tensor of the network, by its own name; and the
    prefix.

  Raises:
    UserError: as in `to_timm`, or the network has no head for every pixel.
  """
  translated = {name: _translate(name, _OTHERS) for name in names}
  backbone = _prefix(translated.values(), ema)
  prefix = backbone.removesuffix("backbone.")
  heads = f"{prefix}classifier.", f"{prefix}aux_classifier."
  if prefix == backbone or not any(x.startswith(heads) for x in translated.values()):
    raise UserError(
      "it holds no network for semantic segmentation, whose tensors have names such as "
      "backbone.conv1.weight and classifier.4.weight; load a backbone alone into its "
      "own network, and put its variables under 'backbone'"
    )
  starts = backbone, *heads
  inside = {
    name: found.removeprefix(prefix)
    for name, found in translated.items()
    if found.startswith(starts)
  }
  return inside, prefix


def to_detector(
  names: Collection[str], ema: bool | None = None
) -> tuple[dict[str, str], str]:
  """Translates the names of a detector's state dict to those of torchvision 0.13.

  The arguments and the results are those of `to_timm`.

  Raises:
    UserError: as in `to_timm`, or the names are not those of a detector.
  """
  translated = {name: _translate(name, _OLD_DETECTORS) for name in names}
  body = _prefix(translated.values(), ema)
  if not body.endswith(BODY):
    raise UserError(
      f"it holds no detector, whose tensors have names such as {BODY}conv1.weight; "
      "load a backbone alone into its own network, and put its variables under "
      "'backbone'"
    )
  prefix = body.removesuffix(BODY)
  inside = {
    name: found.removeprefix(prefix)
    for name, found in translated.items()
    if found.startswith(prefix)
  }
  return inside, prefix


def _translate(name: str, rules: list[_Rule]) -> str:
  while name.startswith(_WRAPPERS):
    name = name.partition(".")[2]
  for pattern, new in rules:
    name = re.sub(pattern, new, name)
  return name


def _prefix(names: Collection[str], ema: bool | None) -> str:
  """Returns the prefix under which most names are those of a network."""
  found = {
    name.removesuffix(kernel)
    for name in names
    for kernel in FIRST_KERNELS
    if name == kernel or name.endswith(f".{kernel}")
  }
  found = {prefix for prefix in found if not _IN_STAGE.search(prefix)}
  if len(found) > _MOST_NETWORKS:
    raise UserError(f"it holds more than {_MOST_NETWORKS} networks")
  sizes = {
    prefix: sum(
      name.startswith(prefix) and bool(_FIRST.match(name, len(prefix)))
      for name in names
    )
    for prefix in sorted(found)
  }
  most = max(sizes.values(), default=0)
  # Another part of a detector may have a first kernel too, but fewer names.
  networks = [prefix for prefix, size in sizes.items() if size > most / 2]
  chosen = [x for x in networks if ema is None or bool(_EMA.search(x)) == ema]
  under = ", ".join(map(repr, networks))
  if ema is not None and networks and not chosen:
    raise UserError(f"it holds no network {'with' if ema else 'without'} EMA: {under}")
  if len(chosen) > 1:
    raise UserError(
      f"it holds {len(networks)} networks, under {under}; choose the exponential "
      "moving average by --ema or the other by --no-ema (ema=True or ema=False in "
      "Python), or save the state dict of one"
    )
  return chosen[0] if chosen else ""
