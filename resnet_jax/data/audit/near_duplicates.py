"""Finds images that look almost the same, by a perceptual hash.

The hash is the usual one of 64 bits ("pHash"): the signs of the lowest frequencies of a
small grey image. Images with a similar hash are then compared pixel by pixel.
"""

import itertools
from collections.abc import Iterator
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
# An image is compared with at most so many others that share two bytes of its hash.
# Hashes that are evenly spread share them with one in 65,536 images.
_MOST_COMPARED = 100
_PART = 10_000  # Hashes that are compared at a time.
_BYTE = np.uint64(255)
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

  Its time and memory grow with N + M, not with N M. So if very many different hashes
  are alike, only some of them are compared with each other.

  Args:
    first: hashes of N images.
    second: hashes of M images.

  Returns:
    (index in `first`, index in `second`), at most 5 for each of the M images: those
    that differ in the fewest bits.
  """
  # Many images may have one hash, such as empty pages. It is searched only once.
  hashes, of_first = np.unique(first, return_inverse=True)
  wanted, of_second = np.unique(second, return_inverse=True)
  order, counts = np.argsort(of_first, kind="stable"), np.bincount(of_first)
  starts = np.cumsum(counts) - counts
  near: list[list[tuple[int, int]]] = [[] for _ in wanted]
  for i, j, bits in _similar_hashes(hashes, wanted):
    same = order[starts[i] : starts[i] + min(counts[i], _MOST_PAIRS)]
    near[j] += [(bits, int(index)) for index in same]
  closest = [sorted(pairs)[:_MOST_PAIRS] for pairs in near]
  return [(i, j) for j, k in enumerate(of_second.tolist()) for _, i in closest[k]]


def _similar_hashes(
  first: UInt[np.ndarray, " n"], second: UInt[np.ndarray, " m"]
) -> Iterator[tuple[int, int, int]]:
  """Yields (index in `first`, index in `second`, number of bits that differ).

  Each hash of `second` gets at most 5 of the others. No hash occurs twice.
  """
  found = np.empty(0, np.int64)  # Of a pair: index in second, bits, index in first.
  # If at most 6 of 8 bytes differ, at least two bytes are equal in both hashes.
  for low, high in itertools.combinations(range(0, 64, 8), 2):
    keys, asked = (
      (x >> np.uint64(low) & _BYTE) << np.uint64(8) | (x >> np.uint64(high) & _BYTE)
      for x in (first, second)
    )
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    from_, to = (np.searchsorted(keys[order], asked, side) for side in _SIDES)
    counts = np.minimum(to - from_, _MOST_COMPARED)
    for start in range(0, len(second), _PART):
      number = counts[start : start + _PART]
      ends = np.cumsum(number)
      j = np.repeat(np.arange(start, start + len(number)), number)
      place = np.arange(ends[-1]) - np.repeat(ends - number, number)
      i = order[from_[j] + place]
      bits = np.bitwise_count(first[i] ^ second[j])
      near = bits <= _MOST_BITS
      pairs = j[near] << 36 | bits[near].astype(np.int64) << 32 | i[near]
      found = np.concatenate([found, _closest(pairs)])
    found = _closest(found)
  for pair in found.tolist():
    yield pair & 2**32 - 1, pair >> 36, pair >> 32 & 15


def _closest(pairs: np.ndarray) -> np.ndarray:
  """Returns the first 5 pairs of each index in `second`, which are the closest."""
  pairs = np.unique(pairs)
  second = pairs >> 36
  rank = np.arange(len(pairs)) - np.searchsorted(second, second)
  return pairs[rank < _MOST_PAIRS]
