"""Finds images that look almost the same, by a perceptual hash.

The hash is the usual one of 64 bits ("pHash"): the signs of the lowest frequencies of a
small grey image. Images with a similar hash are then compared pixel by pixel.
"""

import itertools
from collections import defaultdict
from typing import Literal

import cv2
import numpy as np

from resnet_jax.data.images.decode import read_stored
from resnet_jax.data.images.pixels import Head, Stored
from resnet_jax.runtime.arrays import Float32, Num, UInt

# Two images are compared if at most so many of the 64 bits of their hashes differ.
_MOST_BITS = 6
_SIDE = 32  # Of the small images, in pixels.
# Two images look the same if the correlation of their small images is at least this.
_LEAST_CORRELATION = 0.9
_MOST_PAIRS = 5  # Of an image.
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


def read_small(data: bytes, head: Head) -> Stored:
  """Reads all bytes of an image file, but computes a large JPEG at a smaller size."""
  factors = (factor for factor in (8, 4, 2) if min(head.size) >= factor * _SIDE)
  return read_stored(data, head, next(factors, 1))


def shrink(image: Num[np.ndarray, "h w c"]) -> Float32[np.ndarray, "s s"]:
  """Returns a small grey image, in the range of the values of the image."""
  gray = np.nan_to_num(image.astype(np.float32).mean(axis=2))
  small: np.ndarray = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  return small


def perceptual_hash(small: Float32[np.ndarray, "s s"]) -> int:
  """Returns 64 bits that are similar for images that look similar.

  Args:
    small: from `shrink`.
  """
  low = cv2.dct(small)[:8, :8].ravel()
  bits = low > np.median(low[1:])  # The first is the brightness of the whole.
  return int.from_bytes(np.packbits(bits).tobytes())


def look_same(
  first: Float32[np.ndarray, "s s"], second: Float32[np.ndarray, "s s"]
) -> bool:
  """Whether two small images differ in little but brightness and contrast."""
  a, b = (image - image.mean() for image in (first, second))
  scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
  return scale > 0 and float((a * b).sum()) >= _LEAST_CORRELATION * scale


def find_similar(
  first: UInt[np.ndarray, " n"], second: UInt[np.ndarray, " m"]
) -> list[tuple[int, int]]:
  """Returns pairs of images whose hashes differ in at most 6 bits.

  Args:
    first: hashes of N images.
    second: hashes of M images.

  Returns:
    (index in `first`, index in `second`), at most 5 for each of the M images: those
    that differ in the fewest bits.
  """
  near: dict[int, set[int]] = defaultdict(set)
  # At least one of this many parts is equal in both hashes.
  ends = np.linspace(0, 64, _MOST_BITS + 2).astype(int).tolist()
  for start, end in itertools.pairwise(ends):
    shift, mask = np.uint64(start), np.uint64(2 ** (end - start) - 1)
    parts, wanted = ((hashes >> shift) & mask for hashes in (first, second))
    order = np.argsort(parts, kind="stable")
    from_, to = (np.searchsorted(parts[order], wanted, side) for side in _SIDES)
    for j in np.flatnonzero(from_ < to).tolist():
      others = order[from_[j] : to[j]]
      bits = np.bitwise_count(first[others] ^ second[j])
      near[j].update(others[bits <= _MOST_BITS].tolist())
  pairs = []
  for j, found in sorted(near.items()):
    others = np.array(sorted(found), int)
    bits = np.bitwise_count(first[others] ^ second[j])
    closest = others[np.argsort(bits, kind="stable")[:_MOST_PAIRS]]
    pairs += [(i, j) for i in closest.tolist()]
  return pairs
