"""Helpers that the readers of data sets share."""

import dataclasses
import re

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
  import tensorflow_datasets as tfds

  try:
    whole = tfds.core.SplitInfo(name=name, shard_lengths=[len(source)], num_bytes=0)
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute({name: whole})
    every = np.arange(len(source))
    index = np.concatenate([every[part.from_ : part.to] for part in parts])
  except (ValueError, AssertionError) as error:
    raise UserError(f"{split_name()}={split!r}: {error}") from error
  if not len(index):
    raise UserError(f"{split_name()}={split!r} is empty")
  images, labels = source.images[index], source.labels[index]
  return dataclasses.replace(source, images=images, labels=labels)
