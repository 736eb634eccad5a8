"""The data sets that need no files: the digits and synthetic images."""

import dataclasses

import numpy as np

from resnet_jax.config.allowed import check_choice
from resnet_jax.data import ImageArrays
from resnet_jax.data.sources.base import split_name
from resnet_jax.runtime.errors import UserError

_DIGITS = tuple(map(str, range(10)))


_SPLITS = "train", "test"


def _built_in(split: str) -> str:
  """Returns which of the built-in sets' splits is meant, or is a part of it."""
  name = split.partition("[")[0]
  check_choice(split_name(), name, _SPLITS)
  return name


def _cut(source: ImageArrays, name: str, split: str) -> ImageArrays:
  """Returns the part of a split that TFDS's syntax names.

  Args:
    source: the whole split.
    name: of it.
    split: such as "train[:80%]".

  Raises:
    ValueError: it is none.
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


def load_digits(split: str) -> ImageArrays:
  """scikit-learn's handwritten digits: 1,437 training and 360 test images, 8x8x1.

  Args:
    split: "train" or "test", fixed, stratified by digit; or a part, "train[:80%]".

  Raises:
    ValueError: another split.
  """
  name = _built_in(split)
  import sklearn.datasets
  import sklearn.model_selection

  digits = sklearn.datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  train, test = sklearn.model_selection.train_test_split(
    np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
  )
  index = train if name == "train" else test
  return _cut(ImageArrays(images[index], labels[index], _DIGITS), name, split)


def load_synthetic(split: str, image_size: int, num_examples: int) -> ImageArrays:
  """Noise around a random pattern for each of 10 classes: easy to learn, free to make.

  Args:
    split: "train" or "test", which differ in their noise only; or a part of one.
    image_size: H and W; C is 3.
    num_examples: N.

  Raises:
    ValueError: another split.
  """
  name = _built_in(split)
  patterns = np.random.default_rng(0).uniform(64, 192, (10, image_size, image_size, 3))
  rng = np.random.default_rng(1 + _SPLITS.index(name))
  labels = rng.integers(0, 10, num_examples, dtype=np.int32)
  noise = rng.standard_normal((num_examples, image_size, image_size, 3), np.float32)
  images = np.clip(patterns[labels] + 32 * noise, 0, 255).astype(np.uint8)
  return _cut(ImageArrays(images, labels, _DIGITS), name, split)
