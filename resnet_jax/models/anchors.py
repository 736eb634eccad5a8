"""Anchors: where they lie, and the detections that a network makes relative to them.

Letters: B batch, A anchors of all levels, K classes. Boxes are those of `boxes.py`, in
pixels of the image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnet_jax.models.boxes import (
  clip_boxes,
  decode_boxes,
  non_maximum_suppression,
)
from resnet_jax.runtime.arrays import AnyArray, Array, Bool, Float32, Int32
from resnet_jax.runtime.errors import UserError

_RATIOS = (0.5, 1.0, 2.0)  # Height divided by width.
_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # Three in an octave.
ANCHORS_PER_POSITION = len(_RATIOS) * len(_SCALES)


def anchors_of(
  map_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int], smallest: int = 32
) -> tuple[Float32[np.ndarray, "_ 4"], ...]:
  """Returns the anchors of RetinaNet (Lin et al. 2017, section 4), level by level.

  Every position of a map has nine: three sizes times three ratios of height to width.
  Numbers are rounded as in torchvision's `AnchorGenerator`. Sizes and the corners
  around a position become whole pixels. The distance between positions is the size of
  the image divided by the size of the map, rounded down. It can differ from the stride
  of the layers.

  Args:
    map_sizes: height and width of each map, from the finest on.
    image_size: height and width of the images, with any padding, in pixels.
    smallest: side of the smallest anchors, on the finest map, in pixels. It doubles
      with each further map.

  Returns:
    For each map [height * width * 9, 4], by row, column, ratio and size.
  """
  levels = []
  for number, (height, width) in enumerate(map_sizes):
    size = smallest * 2**number
    sides = np.array([int(size * scale) for scale in _SCALES], np.float32)
    root = np.sqrt(np.array(_RATIOS, np.float32))[:, None]
    halves = np.stack([1 / root * sides, root * sides], axis=-1).reshape(-1, 2) / 2
    around = np.concatenate([-halves, halves], axis=-1).round()  # [9, 4]
    y_of_row = np.arange(height) * (image_size[0] // height)
    x_of_column = np.arange(width) * (image_size[1] // width)
    y, x = np.meshgrid(y_of_row, x_of_column, indexing="ij")
    centers = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    levels.append((centers + around).reshape(-1, 4).astype(np.float32))
  return tuple(levels)


class Detections(NamedTuple):
  """What `detect` finds in each image, the highest scores first.

  Where `mask` is False, there is no such result, and the other numbers are 0.

  Attributes:
    boxes: in pixels of the image.
    scores: probabilities.
    labels: numbers of classes.
    mask: whether there is such a result.
  """

  boxes: Float32[Array, "b n 4"]
  scores: Float32[Array, "b n"]
  labels: Int32[Array, "b n"]
  mask: Bool[Array, "b n"]


def detect(
  outputs: dict[str, Float32[Array, "b a _"]],
  anchors: Sequence[Float32[AnyArray, "_ 4"]],
  image_size: tuple[int, int] | AnyArray,
  score: float = 0.05,
  nms: float = 0.5,
  most: int = 300,
  per_level: int = 1000,
) -> Detections:
  """Turns the outputs of a detector into boxes with a class and a score.

  It is what torchvision's `RetinaNet.postprocess_detections` does: the best pairs of an
  anchor and a class on each level, above a score, without those that overlap a better
  box of the same class.

  Args:
    outputs: of `RetinaNet`: "scores", logits [B, A, K], and "boxes", [B, A, 4].
    anchors: the anchors of each level, of `RetinaNet.anchors`.
    image_size: height and width in pixels of all images, or of each one, [B, 2]. Boxes
      are cut there; give the size without padding.
    score: results have a higher probability.
    nms: the largest allowed intersection over union with a better box of the same
      class.
    most: number of results for each image, n.
    per_level: the largest number of pairs of each level.

  Raises:
    UserError: the outputs have another number of anchors.
  """
  logits, deltas = outputs["scores"], outputs["boxes"]
  ends = np.cumsum([len(level) for level in anchors])
  if ends[-1] != logits.shape[1]:
    raise UserError(
      f"the outputs are for {logits.shape[1]} anchors, not for {ends[-1]}; take the "
      "anchors of the size that the images had, with their padding"
    )
  image_sizes = jnp.broadcast_to(jnp.asarray(image_size), (len(logits), 2))

  def detect_in(logits: Array, deltas: Array, size: Array) -> Detections:
    levels = zip(
      jnp.split(logits, ends[:-1]), jnp.split(deltas, ends[:-1]), anchors, strict=True
    )
    found = [_best_pairs(*level, per_level) for level in levels]
    boxes, scores, labels = map(jnp.concatenate, zip(*found, strict=True))
    boxes = clip_boxes(boxes, size)
    above = scores > score
    kept, mask = non_maximum_suppression(boxes, scores, labels, nms, most, above)
    return Detections(
      jnp.where(mask[:, None], boxes[kept], 0),
      jnp.where(mask, scores[kept], 0),
      jnp.where(mask, labels[kept], 0),
      mask,
    )

  detections: Detections = jax.vmap(detect_in)(logits, deltas, image_sizes)
  return detections


def _best_pairs(
  logits: Float32[Array, "n k"],
  deltas: Float32[Array, "n 4"],
  anchors: Float32[AnyArray, "n 4"],
  most: int,
) -> tuple[Float32[Array, "m 4"], Float32[Array, " m"], Int32[Array, " m"]]:
  """Returns the boxes, scores and labels of the best pairs of an anchor and a class."""
  number, classes = logits.shape
  scores = jax.nn.sigmoid(logits)
  # The best pairs are pairs of the anchors with the best scores. Sorting these first
  # is much faster than sorting all pairs. In the order of the anchors, equal scores
  # are chosen as if all pairs were sorted.
  _, best = lax.top_k(scores.max(axis=1), min(most, number))
  best = jnp.sort(best)
  pairs = scores[best].reshape(-1)
  top, indices = lax.top_k(pairs, min(most, pairs.size))
  chosen = best[indices // classes]
  boxes = decode_boxes(deltas[chosen], jnp.asarray(anchors)[chosen])
  return boxes, top, indices % classes
