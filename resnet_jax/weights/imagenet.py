"""The 1,000 classes of ImageNet (ILSVRC 2012), in the order of their logits."""

import functools
from collections.abc import Sequence
from pathlib import Path


@functools.cache
def class_names() -> tuple[str, ...]:
  """Returns a unique name for each class.

  It is the first name in WordNet (Princeton University). If two classes share it, an
  addition tells them apart: "crane (bird)" and "crane (machine)".
  """
  return _lines("imagenet_classes.txt")


@functools.cache
def synsets() -> tuple[str, ...]:
  """Returns the WordNet ids, such as "n01440764". They are sorted."""
  return _lines("imagenet_synsets.txt")


def are_classes(names: Sequence[str]) -> bool:
  """Whether these are the names of ImageNet's classes, from any common list.

  Lists differ in a few names and in the number of synonyms, such as "tench, Tinca
  tinca".
  """
  own = class_names()
  same = sum(a.split(",")[0] == b for a, b in zip(names, own, strict=False))
  return len(names) == len(own) and same > 0.9 * len(own)


def _lines(name: str) -> tuple[str, ...]:
  text = Path(__file__).with_name(name).read_text(encoding="utf-8")
  return tuple(text.splitlines())
