"""What the readers of data sets share."""

import dataclasses
import re

import numpy as np

from resnet_jax.config.allowed import check_choice
from resnet_jax.data import ImageArrays
from resnet_jax.runtime.errors import UserError, setting_name

# Largest split that is kept on the device, in GiB; CIFAR-10 has 0.14.
MAX_GIB = 8
# Of the sets that are read without TFDS.
SPLITS = "train", "test"
# What an evaluation takes where no split is named, the first that is there.
EVAL_SPLITS = ("val", "validation", "valid", "test")


def split_name() -> str:
  """Returns what a message calls the setting that names a split."""
  name = setting_name("data.eval_split")
  is_flag = name != "config.data.eval_split"
  return name if is_flag else "config.data.train_split or eval_split"


def is_number(name: str) -> bool:
  """Whether a class is called by a number, which need not be whole."""
  return re.fullmatch(r"[+-]?\d+([.,]\d+)?", name) is not None


def plain_number(text: str) -> str:
  """Returns a whole number without leading zeros, and any other text as it is."""
  return (text.lstrip("0") or "0") if text.isdecimal() else text


def whole_split(split: str) -> str:
  """Returns the one of `SPLITS` that is meant, or that a part is taken of.

  Raises:
    UserError: it is another one.
  """
  name = split.partition("[")[0]
  check_choice(split_name(), name, SPLITS)
  return name


def take_part(source: ImageArrays, name: str, split: str) -> ImageArrays:
  """Returns the part of a split that TFDS's syntax names.

  Args:
    source: the whole split.
    name: of it.
    split: such as "train[:80%]".

  Raises:
    UserError: it is none.
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
