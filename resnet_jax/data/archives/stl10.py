"""Reads STL-10: an archive of files of pixels, 96x96, and of files of labels.

The format: cs.stanford.edu/~acoates/stl10 (Coates et al. 2011). The 100,000 images
without labels are left out.
"""

import tarfile
from collections.abc import Iterator

import numpy as np

from resnet_jax.data.archives.rows import Files, Row, Split, check, reading

CLASSES = (
  *("airplane", "bird", "car", "cat", "deer"),
  *("dog", "horse", "monkey", "ship", "truck"),
)
_SHAPE = (3, 96, 96)  # Channel, column, row.
_BYTES = 3 * 96 * 96
_MAX_COUNT = 10_000


def read(files: Files, split: str) -> Split:
  """Reads "train" or "test"."""
  path = files["archive"]
  wanted = f"{split}_X.bin", f"{split}_y.bin"
  found: dict[str, bytes] = {}
  with reading(path), tarfile.open(path) as archive:
    for member in archive:
      name = member.name.rpartition("/")[2]
      if name in wanted and (content := archive.extractfile(member)):
        found[name] = content.read(_MAX_COUNT * _BYTES + 1)
      if len(found) == len(wanted):  # The images without labels follow.
        break
    for name in wanted:
      check(name in found, f"it has no {name}")
    pixels, labels = (np.frombuffer(found[name], np.uint8) for name in wanted)
    check(
      len(pixels) == len(labels) * _BYTES,
      f"{wanted[0]} has {len(pixels) / _BYTES:,g} images for {len(labels):,} labels",
    )
  return Split(CLASSES, _rows(pixels.reshape(-1, *_SHAPE), labels))


def _rows(images: np.ndarray, labels: np.ndarray) -> Iterator[Row]:
  for image, label in zip(images, labels, strict=True):
    yield Row(image.transpose(2, 1, 0), int(label) - 1)
