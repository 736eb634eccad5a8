"""The data sets that need no files: the digits and synthetic images."""

from pathlib import Path

import numpy as np

from resnet_jax.data import ImageArrays
from resnet_jax.data.sources.base import SPLITS, take_part, whole_split

_DIGITS = tuple(map(str, range(10)))
_TRAINING = 1437  # Images in the training set of the digits.


def load_digits(split: str) -> ImageArrays:
  """The handwritten digits of scikit-learn: 1,437 training and 360 test images, 8x8x1.

  They are the test set of Alpaydin and Kaynak 1998, "Optical recognition of handwritten
  digits", UCI Machine Learning Repository (CC BY 4.0). `digits.npz` has them in the
  order of `sklearn.model_selection.train_test_split`, as scikit-learn takes a second to
  import.

  Args:
    split: "train" or "test", which are fixed and stratified by digit; or a part, such
      as "train[:80%]".

  Raises:
    ValueError: another split.
  """
  name = whole_split(split)
  with np.load(Path(__file__).with_name("digits.npz")) as digits:
    images, labels = digits["images"], digits["labels"].astype(np.int32)
  images = np.round(images * (255 / 16)).astype(np.uint8)[..., None]
  part = slice(_TRAINING) if name == "train" else slice(_TRAINING, None)
  return take_part(ImageArrays(images[part], labels[part], _DIGITS), name, split)


def load_synthetic(split: str, image_size: int, num_examples: int) -> ImageArrays:
  """Makes noise around a random pattern for each of 10 classes, which is easy to learn.

  Args:
    split: "train" or "test", which differ in their noise only; or a part of one.
    image_size: H and W; C is 3.
    num_examples: N.

  Raises:
    ValueError: another split.
  """
  name = whole_split(split)
  patterns = np.random.default_rng(0).uniform(64, 192, (10, image_size, image_size, 3))
  rng = np.random.default_rng(1 + SPLITS.index(name))
  labels = rng.integers(0, 10, num_examples, dtype=np.int32)
  noise = rng.standard_normal((num_examples, image_size, image_size, 3), np.float32)
  images = np.clip(patterns[labels] + 32 * noise, 0, 255).astype(np.uint8)
  return take_part(ImageArrays(images, labels, _DIGITS), name, split)
