"""Helpers that the readers of data sets share."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence

import numpy as np

from resnet_jax.config.allowed import check_choice
from resnet_jax.data import ImageArrays
from resnet_jax.runtime.errors import UserError, setting_name

# Largest split that is kept on the device, in GiB; CIFAR-10 has 0.14.
MAX_GIB = 8
# The splits of data sets that are read without TFDS.
SPLITS = "train", "test"
# If no split is named, evaluation uses the first of these that exists.
EVAL_SPLITS = ("val", "validation", "valid", "test")


def split_name() -> str:
  """Returns the flag or the settings that choose a split, as text for messages."""
  name = setting_name("data.eval_split")
  is_flag = name != "config.data.eval_split"
  return name if is_flag else "config.data.train_split or eval_split"


def is_number(name: str) -> bool:
  """Whether a class name is a number, whole or with decimals."""
  return re.fullmatch(r"[+-]?\d+([.,]\d+)?", name) is not None


def plain_number(text: str) -> str:
  """Returns a whole number without leading zeros, and any other text unchanged."""
  return (text.lstrip("0") or "0") if text.isdecimal() else text


def whole_split(split: str) -> str:
  """Removes the part from a split's name: "train[:80%]" becomes "train".

  Raises:
    UserError: the split is none of `SPLITS`.
  """
  name = split.partition("[")[0]
  check_choice(split_name(), name, SPLITS)
  return name


def take_part(source: ImageArrays, name: str, split: str) -> ImageArrays:
  """Returns a part of a split, named in TFDS's syntax.

  Args:
    source: the whole split.
    name: name of the whole split.
    split: name of the part, such as "train[:80%]".

  Raises:
    UserError: `split` names no part, or an empty one.
  """
  if split == name:
    return source
  index = part_of(len(source), name, split)
  images, labels = source.images[index], source.labels[index]
  return dataclasses.replace(source, images=images, labels=labels)


def part_of(count: int, name: str, split: str) -> np.ndarray:
  """Returns the indices of a part of a split of `count` images; see `take_part`."""
  import tensorflow_datasets as tfds

  try:
    whole = tfds.core.SplitInfo(name=name, shard_lengths=[count], num_bytes=0)
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute({name: whole})
    every = np.arange(count)
    index = np.concatenate([every[part.from_ : part.to] for part in parts])
  except (ValueError, AssertionError) as error:
    text = f"{split_name()}={split!r}: {str(error).splitlines()[0]}"
    raise UserError(text) from error
  if not len(index):
    raise UserError(f"{split_name()}={split!r} is empty")
  return index


def is_validation(
  names: Sequence[bytes], labels: np.ndarray, share: float
) -> np.ndarray:
  """Chooses the images of each class that are kept for evaluation.

  They are those whose names have the smallest hashes. If an image is added or removed,
  at most one other image moves between training and evaluation.

  Args:
    names: of N images.
    labels: of the images, see `LabelSpec`. Only classes are divided one by one.
    share: fraction of each class.

  Returns:
    [N] bool.
  """
  if labels.ndim > 1:
    labels = np.zeros(len(labels), np.int32)
  digests = [hashlib.blake2b(name).digest() for name in names]
  order = np.array(sorted(range(len(names)), key=digests.__getitem__))
  order = order[np.argsort(labels[order], kind="stable")]
  counts = np.bincount(labels)
  first = np.cumsum(counts) - counts
  place = np.empty(len(names), int)  # Rank of each image in its shuffled class.
  place[order] = np.arange(len(names)) - np.repeat(first, counts)
  chosen: np.ndarray = place < np.round(counts * share)[labels]
  return chosen
