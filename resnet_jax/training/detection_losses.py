"""Losses of detectors: which anchors should find which object, and how wrong they are.

Letters: B batch, A anchors, G objects of an image, with padding, K classes. Boxes are
those of `models/boxes.py`. All shapes are static.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax

from resnet_jax.config.allowed import check_choice
from resnet_jax.models.boxes import box_area, box_iou, decode_boxes, encode_boxes
from resnet_jax.runtime.arrays import AnyArray, Array, Bool, Float32, Int, Int32

# What an anchor has in place of the index of an object.
BACKGROUND, IGNORED = -1, -2
_TINY_AREA = 1e-7  # torchvision's, against a division by 0.
# (deltas, boxes of the objects, anchors) -> loss of each anchor.
BoxLoss = Callable[[Array, Array, Array], Array]


def match_anchors(
  anchors: Float32[AnyArray, "a 4"],
  boxes: Float32[Array, "g 4"],
  mask: Bool[Array, " g"],
  high: float = 0.5,
  low: float = 0.4,
) -> Int32[Array, " a"]:
  """Assigns an object, or none, to each anchor (Lin et al. 2017, section 4).

  An anchor has the object with which its intersection over union is largest, if that
  is at least `high`. Below `low`, it is background; in between, it is ignored. As in
  torchvision's `Matcher` with `allow_low_quality_matches`, the anchors with which an
  object overlaps most have the object with which they overlap most, however little
  that is. Unlike there, anchors that an object does not touch are not among them.

  Args:
    anchors: of all levels.
    boxes: of the objects.
    mask: whether there is such an object.
    high: see above.
    low: see above; at most `high`.

  Returns:
    The index of the object of each anchor, BACKGROUND or IGNORED.
  """
  if not boxes.shape[0]:
    return jnp.full(len(anchors), BACKGROUND, jnp.int32)
  overlaps = jnp.where(mask[:, None], box_iou(boxes, anchors), -1.0)
  # If XLA computed them twice, they might not equal their own maximum.
  overlaps = lax.optimization_barrier(overlaps)
  nearest = overlaps.argmax(axis=0).astype(jnp.int32)
  best = overlaps.max(axis=0)
  matches = jnp.where(best >= low, IGNORED, BACKGROUND)
  most = overlaps.max(axis=1, keepdims=True)
  is_best_of_an_object = ((overlaps == most) & (most > 0)).any(axis=0)
  return jnp.where((best >= high) | is_best_of_an_object, nearest, matches)


def sigmoid_focal(
  logits: Float32[Array, "*n"],
  targets: Float32[Array, "*n"],
  alpha: float = 0.25,
  gamma: float = 2.0,
) -> Float32[Array, "*n"]:
  """Returns the focal loss of sigmoids (Lin et al. 2017, equation 5).

  Args:
    logits: of a sigmoid each.
    targets: probabilities.
    alpha: weight of a target of 1, in [0, 1]; a target of 0 weighs `1 - alpha`.
    gamma: how much less a number counts that is predicted well.
  """
  # Logarithms of probabilities have finite gradients at all logits.
  has, lacks = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  own = -alpha * targets * has * jnp.exp(gamma * lacks)
  others = -(1 - alpha) * (1 - targets) * lacks * jnp.exp(gamma * has)
  return own + others


def image_losses(
  outputs: dict[str, Float32[Array, "b a _"]],
  anchors: Sequence[Float32[AnyArray, "_ 4"]],
  boxes: Float32[Array, "b g 4"],
  labels: Int[Array, "b g"],
  mask: Bool[Array, "b g"],
  box_loss: str = "l1",
) -> tuple[Float32[Array, " b"], Float32[Array, " b"]]:
  """Returns the focal loss of the classes and the loss of the boxes of each image.

  Both are sums over the anchors of an image, divided by the number of its anchors with
  an object, or 1; torchvision's RetinaNet means them over the images.

  Args:
    outputs: of `RetinaNet`: "scores", logits [B, A, K], and "boxes", [B, A, 4].
    anchors: the anchors of each level, of `RetinaNet.anchors`.
    boxes: of the objects, with an area; padded with any numbers.
    labels: the class of each object, in [0, K).
    mask: whether there is such an object; an image may have none.
    box_loss: a key of `BOX_LOSSES`.

  Raises:
    UserError: `box_loss` is unknown.
  """
  check_choice("box_loss", box_loss, BOX_LOSSES)
  all_anchors = jnp.concatenate([jnp.asarray(level) for level in anchors])

  def losses_of(
    logits: Array, deltas: Array, boxes: Array, labels: Array, mask: Array
  ) -> tuple[Array, Array]:
    matches = match_anchors(all_anchors, boxes, mask)
    has_object = matches >= 0
    number = jnp.maximum(has_object.sum(), 1)
    # Without objects, G may be 0.
    boxes, labels = jnp.pad(boxes, ((0, 1), (0, 0))), jnp.pad(labels, (0, 1))
    classes = jnp.where(has_object, labels[matches], -1)  # The targets of -1 are 0.
    targets = jax.nn.one_hot(classes, logits.shape[-1])
    class_losses = sigmoid_focal(logits, targets).sum(axis=-1)
    # Anchors without an object get a loss that is finite, and leave it out.
    wanted = jnp.where(has_object[:, None], boxes[matches], all_anchors)
    box_losses = BOX_LOSSES[box_loss](deltas, wanted, all_anchors)
    return (
      class_losses.sum(where=matches != IGNORED) / number,
      box_losses.sum(where=has_object) / number,
    )

  losses: tuple[Array, Array] = jax.vmap(losses_of)(
    outputs["scores"], outputs["boxes"], boxes, labels, mask
  )
  return losses


def detection_losses(
  outputs: dict[str, Float32[Array, "b a _"]],
  anchors: Sequence[Float32[AnyArray, "_ 4"]],
  boxes: Float32[Array, "b g 4"],
  labels: Int[Array, "b g"],
  mask: Bool[Array, "b g"],
  image_mask: Bool[Array, " b"] | None = None,
  box_loss: str = "l1",
) -> dict[str, Float32[Array, ""]]:
  """Returns sums of `image_losses` over the images, which devices add.

  The loss to minimise is (class_loss + box_loss) / count.

  Args:
    outputs: see `image_losses`.
    anchors: see `image_losses`.
    boxes: see `image_losses`.
    labels: see `image_losses`.
    mask: see `image_losses`.
    image_mask: whether there is such an image; None if all are there.
    box_loss: see `image_losses`.

  Returns:
    "class_loss", the focal loss; "box_loss"; and "count", the number of images.

  Raises:
    UserError: `box_loss` is unknown.
  """
  losses = image_losses(outputs, anchors, boxes, labels, mask, box_loss)
  if image_mask is None:
    image_mask = jnp.ones(len(boxes), bool)
  return {
    "class_loss": losses[0].sum(where=image_mask),
    "box_loss": losses[1].sum(where=image_mask),
    "count": image_mask.sum(dtype=jnp.float32),
  }


def _l1(deltas: Array, boxes: Array, anchors: Array) -> Array:
  return jnp.abs(deltas - encode_boxes(boxes, anchors)).sum(axis=-1)


def _smooth_l1(deltas: Array, boxes: Array, anchors: Array) -> Array:
  """Squared below an error of 1 (Girshick 2015, "Fast R-CNN", equation 3)."""
  losses: Array = optax.huber_loss(deltas, encode_boxes(boxes, anchors)).sum(axis=-1)
  return losses


def _generalized_iou(deltas: Array, boxes: Array, anchors: Array) -> Array:
  """Returns 1 - the generalised intersection over union (Rezatofighi et al. 2019)."""
  found = decode_boxes(deltas, anchors)
  first, last = jnp.minimum(found, boxes), jnp.maximum(found, boxes)
  width, height = (jnp.maximum(first[:, i + 2] - last[:, i], 0) for i in (0, 1))
  intersection = width * height
  union = box_area(found) + box_area(boxes) - intersection
  hull = box_area(jnp.concatenate([first[:, :2], last[:, 2:]], axis=-1))
  iou = intersection / (union + _TINY_AREA)
  return 1 - iou + (hull - union) / (hull + _TINY_AREA)


# torchvision's `_box_loss`; the names are its names.
BOX_LOSSES: dict[str, BoxLoss] = {
  "l1": _l1,
  "smooth_l1": _smooth_l1,
  "giou": _generalized_iou,
}
