"""Reads MNIST and Fashion-MNIST: files of the format idx, compressed or not.

The format: yann.lecun.com/exdb/mnist, "The IDX file format".
"""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from resnet_jax.data.archives.rows import Files, Read, Row, Split, check, reading

DIGITS = tuple(map(str, range(10)))
CLOTHES = (
  *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
  *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_SHAPE = (28, 28)
_MAX_COUNT = 1_000_000


def reader(class_names: tuple[str, ...]) -> Read:
  """Returns a reader of files with these classes."""

  def read(files: Files, split: str) -> Split:
    images = _read(files[f"{split}-images"], _SHAPE)
    labels = _read(files[f"{split}-labels"], ())
    with reading(files[f"{split}-labels"]):
      check(
        len(images) == len(labels),
        f"it has {len(labels):,} labels for {len(images):,} images",
      )
      highest = int(labels.max(initial=0))
      check(highest < len(class_names), f"it has the label {highest}")
    return Split(class_names, _rows(images, labels))

  return read


def _rows(images: np.ndarray, labels: np.ndarray) -> Iterator[Row]:
  for image, label in zip(images, labels, strict=True):
    yield Row(image, int(label))


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
  """Returns uint8 [N, *shape]."""
  opened = gzip.open if path.suffix == ".gz" else open
  with reading(path), opened(path, "rb") as file:
    # Two zeros, the type of the numbers (8 is uint8) and the number of axes.
    kind, *found = struct.unpack(f">{2 + len(shape)}I", file.read(8 + 4 * len(shape)))
    check(kind == 0x800 + 1 + len(shape), f"it begins with {kind:#x}")
    count, *rest = found
    check(tuple(rest) == shape, f"its images have the shape {rest}")
    check(count <= _MAX_COUNT, f"its header states {count:,} items")
    size = count * int(np.prod(shape, dtype=int))
    content = file.read(size + 1)
    check(len(content) == size, f"it does not have the {count:,} items of its header")
  return np.frombuffer(content, np.uint8).reshape(count, *shape)
