"""Boxes in images: overlap, coding relative to anchors, suppression of duplicates.

A box is [x1, y1, x2, y2] in pixels, float32, with x1 <= x2 and y1 <= y2; its area is
(x2 - x1) * (y2 - y1). All functions are pure and have static shapes, so they work under
`jit`, `vmap` and, except for the suppression, `grad`.
"""

import math

import jax.numpy as jnp
from jax import lax

from resnet_jax.runtime.arrays import AnyArray, Array, Bool, Float32, Int, Int32

# The largest logarithm of a box's width divided by its anchor's. It keeps `exp` finite;
# the number is torchvision's (`BoxCoder`), from Detectron.
_MOST_LOG = math.log(1000 / 16)


def box_area(boxes: Float32[AnyArray, "*n 4"]) -> Float32[Array, "*n"]:
  """Returns areas in square pixels."""
  x1, y1, x2, y2 = _sides(boxes)
  return (x2 - x1) * (y2 - y1)


def box_iou(
  a: Float32[AnyArray, "n 4"], b: Float32[AnyArray, "m 4"]
) -> Float32[Array, "n m"]:
  """Returns the intersection over union (Jaccard index) of each box with each other.

  Args:
    a: boxes.
    b: boxes.

  Returns:
    Ratios in [0, 1] for all pairs; 0 for two boxes without area.
  """
  ax1, ay1, ax2, ay2 = _sides(a[:, None])
  bx1, by1, bx2, by2 = _sides(b[None])
  width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
  height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
  intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)
  union = box_area(a)[:, None] + box_area(b)[None] - intersection
  ratio: Array = jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)
  return ratio


def encode_boxes(
  boxes: Float32[AnyArray, "*n 4"], anchors: Float32[AnyArray, "*n 4"]
) -> Float32[Array, "*n 4"]:
  """Describes each box relative to its anchor (Girshick et al. 2013, appendix C).

  It is torchvision's `BoxCoder` with the weights 1, 1, 1 and 1.

  Args:
    boxes: boxes with an area.
    anchors: boxes with an area.

  Returns:
    The shift of the centre along x and y, in widths and heights of the anchor, and the
    natural logarithms of the width's and the height's ratio to the anchor's.
  """
  x, y, width, height = _center_and_size(boxes)
  anchor_x, anchor_y, anchor_width, anchor_height = _center_and_size(anchors)
  deltas = (
    (x - anchor_x) / anchor_width,
    (y - anchor_y) / anchor_height,
    jnp.log(width / anchor_width),
    jnp.log(height / anchor_height),
  )
  return jnp.stack(deltas, axis=-1)


def decode_boxes(
  deltas: Float32[AnyArray, "*n 4"], anchors: Float32[AnyArray, "*n 4"]
) -> Float32[Array, "*n 4"]:
  """Inverse of `encode_boxes`.

  A width or height is at most 1000 / 16 times its anchor's, as in torchvision.

  Args:
    deltas: as `encode_boxes` returns them.
    anchors: boxes with an area.

  Returns:
    Boxes, which may reach out of the image.
  """
  dx, dy, log_width, log_height = _sides(deltas)
  x, y, width, height = _center_and_size(anchors)
  x, y = dx * width + x, dy * height + y
  half_width = 0.5 * (jnp.exp(jnp.minimum(log_width, _MOST_LOG)) * width)
  half_height = 0.5 * (jnp.exp(jnp.minimum(log_height, _MOST_LOG)) * height)
  sides = x - half_width, y - half_height, x + half_width, y + half_height
  return _from_sides(*sides)


def clip_boxes(
  boxes: Float32[AnyArray, "*n 4"], image_size: tuple[int, int] | AnyArray
) -> Float32[Array, "*n 4"]:
  """Cuts boxes at the border of the image.

  Args:
    boxes: boxes.
    image_size: height and width of the image in pixels.
  """
  height, width = image_size[0], image_size[1]
  x1, y1, x2, y2 = _sides(boxes)
  x1, x2 = (jnp.clip(x, 0, width) for x in (x1, x2))
  y1, y2 = (jnp.clip(y, 0, height) for y in (y1, y2))
  return _from_sides(x1, y1, x2, y2)


def non_maximum_suppression(
  boxes: Float32[Array, "n 4"],
  scores: Float32[Array, " n"],
  labels: Int[Array, " n"],
  iou: float | Array,
  most: int,
  mask: Bool[Array, " n"] | None = None,
) -> tuple[Int32[Array, " {most}"], Bool[Array, " {most}"]]:
  """Keeps the best boxes, without those that overlap a better one of the same class.

  It keeps the box with the best score, drops the boxes of its class whose
  intersection over union with it is above `iou`, and goes on with the rest. The
  results and their order are those of torchvision's `batched_nms`, if that compares
  within each class; for up to 1000 boxes on a CPU, it shifts the boxes of each class
  apart instead, and so rounds them.

  Args:
    boxes: boxes; n >= 1.
    scores: one number for each box; of equal ones, the first one is the best.
    labels: the class of each box.
    iou: the largest allowed overlap with a better box, in [0, 1].
    most: number of results.
    mask: whether there is such a box; None if all are there.

  Returns:
    The indices of the kept boxes, the best first, and whether there is such a result.
    The other indices, which fill up `most`, are 0.
  """
  lowest = -jnp.inf
  left = scores if mask is None else jnp.where(mask, scores, lowest)

  def keep_best(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
    best = jnp.argmax(left).astype(jnp.int32)
    is_kept = left[best] > lowest
    overlaps = box_iou(boxes[best][None], boxes)[0] > iou
    # A box without area does not overlap itself.
    is_best = jnp.arange(len(left)) == best
    dropped = is_best | (overlaps & (labels == labels[best]))
    return jnp.where(dropped, lowest, left), (jnp.where(is_kept, best, 0), is_kept)

  _, (indices, is_kept) = lax.scan(keep_best, left, length=most)
  return indices, is_kept


def _from_sides(*sides: Array) -> Float32[Array, "*n 4"]:
  # The ONNX writer does not know `jnp.stack`.
  return jnp.concatenate([side[..., None] for side in sides], axis=-1)


def _sides(boxes: AnyArray) -> list[Array]:
  """Returns the four numbers of boxes."""
  return [jnp.asarray(boxes)[..., i] for i in range(4)]


def _center_and_size(boxes: AnyArray) -> tuple[Array, Array, Array, Array]:
  """Returns x and y of the centres, widths and heights."""
  x1, y1, x2, y2 = _sides(boxes)
  width, height = x2 - x1, y2 - y1
  return x1 + 0.5 * width, y1 + 0.5 * height, width, height
