"""Reads SVHN in its second format: MATLAB files of cropped digits of 32x32 pixels.

The format: ufldl.stanford.edu/housenumbers (Netzer et al. 2011).
"""

from collections.abc import Iterator

import numpy as np

from resnet_jax.data.archives.idx import DIGITS
from resnet_jax.data.archives.rows import Files, Row, Split, check, reading


def read(files: Files, split: str) -> Split:
  """Reads "train", "test" or "extra"; the class of a digit is its number."""
  import scipy.io

  path = files[split]
  with reading(path):
    found = scipy.io.loadmat(str(path), variable_names=("X", "y"))
    check({"X", "y"} <= found.keys(), "it has no arrays X and y")
    images, labels = found["X"], found["y"].ravel()
    check(
      images.dtype == np.uint8 and images.shape == (32, 32, 3, len(labels)),
      f"X is {images.dtype} {images.shape} for {len(labels):,} labels",
    )
    check(
      labels.dtype.kind in "iu" and bool(np.isin(labels, range(1, 11)).all()),
      "its labels are not all from 1 to 10",
    )
  return Split(DIGITS, _rows(images, labels))


def _rows(images: np.ndarray, labels: np.ndarray) -> Iterator[Row]:
  for index, label in enumerate(labels):
    yield Row(images[..., index], int(label) % 10)  # 10 is the digit 0.
