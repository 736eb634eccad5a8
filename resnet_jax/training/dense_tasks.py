"""Tasks whose labels are places in an image: masks and boxes.

Letters: B batch, H height, W width, K classes, A anchors, M boxes of an image, with
padding, D detections of an image.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.data.labels import LabelSpec
from resnet_jax.models.anchors import detect
from resnet_jax.runtime.arrays import Array, Float32, Int, Int32, UInt8
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.average_precision import Matches, average_precision, match
from resnet_jax.training.detection_losses import image_losses
from resnet_jax.training.segmentation_scores import segmentation_scores

_DETECTIONS = 100  # Of an image, as in COCO's average precision.

Outputs = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """A class for each pixel: cross-entropy, mean IoU and pixel accuracy.

  Each image has the same weight in the loss, however many of its pixels are labelled.

  Attributes:
    num_classes: K.
    aux_weight: weight of the loss of the auxiliary head in training, if the network has
      one; torchvision's recipe has 0.5.
  """

  num_classes: int
  aux_weight: float = 0.5
  best_metric: str = "mean_iou"

  @property
  def label(self) -> LabelSpec:
    """The classes of the pixels."""
    return LabelSpec.of("mask", self.num_classes)

  @property
  def outputs(self) -> dict[str, tuple[int | None, ...]]:
    """The logits of every pixel; the network may also have "aux"."""
    return {"out": (None, None, self.num_classes)}

  def targets(self, labels: UInt8[Array, "b h w"]) -> UInt8[Array, "b h w"]:
    """Returns the classes themselves, which cannot be mixed."""
    return labels

  def loss(
    self, logits: Outputs, targets: UInt8[Array, "b h w"], train: bool
  ) -> Float32[Array, " b"]:
    """Returns the mean cross-entropy of the labelled pixels, in nats."""
    loss = _pixel_loss(logits["out"], targets)
    if train and "aux" in logits:
      loss += self.aux_weight * _pixel_loss(logits["aux"], targets)
    return loss

  def metrics(
    self, logits: Outputs, labels: UInt8[Array, "b h w"]
  ) -> dict[str, Int32[Array, "b k k"]]:
    """Returns how many pixels of each class [K, ] were found as each class [, K]."""
    count = self.num_classes
    found = logits["out"].argmax(-1).astype(jnp.int32)
    # Ignored pixels are counted after the others, and left out.
    rows = labels.astype(jnp.int32)  # uint8 holds no pair of 17 classes.
    pairs = jnp.where(rows < count, rows * count + found, count * count)
    zeros = jnp.zeros(count * count + 1, jnp.int32)

    def count_pairs(pairs: Array) -> Array:
      return zeros.at[pairs].add(1)

    counts = jax.vmap(count_pairs)(pairs.reshape(len(pairs), -1))[:, :-1]
    return {"confusion": counts.reshape(-1, count, count)}

  def results(self, sums: Mapping[str, np.ndarray], found: Any) -> dict[str, float]:
    """Returns "mean_iou" and "pixel_accuracy" of all pixels together.

    If all pixels are ignored, as can be in a crop of training, there are no results.
    """
    del found
    scores = segmentation_scores(sums["confusion"])
    if not scores["count"]:
      return {}
    return {name: scores[name] for name in ("mean_iou", "pixel_accuracy")}


def _pixel_loss(
  logits: Float32[Array, "b h w k"], labels: UInt8[Array, "b h w"]
) -> Float32[Array, " b"]:
  is_labelled = labels < logits.shape[-1]
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(is_labelled, labels, 0).astype(jnp.int32)
  )
  total: Array = losses.sum(axis=(1, 2), where=is_labelled)
  return total / jnp.maximum(is_labelled.sum(axis=(1, 2)), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
  """Objects with a class and a box: RetinaNet's losses, and COCO's average precision.

  Attributes:
    num_classes: K.
    anchors: of each level, `RetinaNet.anchors` of `image_size`.
    image_size: height and width of the images.
    box_loss: `RetinaNet.box_loss`.
  """

  num_classes: int
  anchors: tuple[np.ndarray, ...]
  image_size: tuple[int, int]
  box_loss: str = "l1"
  best_metric: str = "ap"

  @property
  def label(self) -> LabelSpec:
    """The boxes."""
    return LabelSpec.of("boxes", self.num_classes)

  @property
  def outputs(self) -> dict[str, tuple[int | None, ...]]:
    """The numbers of each anchor."""
    count = sum(map(len, self.anchors))
    return {"scores": (count, self.num_classes), "boxes": (count, 4)}

  def targets(self, labels: Float32[Array, "b m 6"]) -> Float32[Array, "b m 6"]:
    """Returns the boxes themselves, which cannot be mixed."""
    return labels

  def loss(
    self, logits: Outputs, targets: Float32[Array, "b m 6"], train: bool
  ) -> Float32[Array, " b"]:
    """Returns the sum of both losses."""
    del train
    losses = self.metrics(logits, targets)
    return losses["class_loss"] + losses["box_loss"]

  def metrics(
    self, logits: Outputs, labels: Float32[Array, "b m 6"]
  ) -> dict[str, Float32[Array, " b"]]:
    """Returns both losses, see `image_losses`. Crowds are no objects here."""
    classes = labels[..., 4].astype(jnp.int32)
    mask = (classes >= 0) & (labels[..., 5] == 0)
    class_loss, box_loss = image_losses(
      logits, self.anchors, labels[..., :4], classes, mask, self.box_loss
    )
    return {"class_loss": class_loss, "box_loss": box_loss}

  def found(
    self, outputs: Outputs, labels: Float32[Array, "b m 6"]
  ) -> dict[str, Array]:
    """Returns the detections of each image, and its true boxes."""
    found = detect(outputs, self.anchors, self.image_size, most=_DETECTIONS)
    # Rows beyond a detection's number have no class, as those of the true boxes.
    classes = jnp.where(found.mask, found.labels, -1)
    return {
      "boxes": found.boxes,
      "scores": found.scores,
      "classes": classes,
      "true": labels,
    }

  def results(
    self, sums: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray] | None
  ) -> dict[str, float]:
    """Returns COCO's "ap", "ap50" and "ap75" of an evaluation.

    Raises:
      UserError: the images have no boxes but crowds.
    """
    del sums
    if found is None:
      return {}
    names = "boxes", "scores", "classes", "true"
    rows = zip(*(found[name] for name in names), strict=True)
    matches = [match_found(*row) for row in rows]
    if not any(len(x.truths) for x in matches):
      raise UserError(
        f"none of the {len(matches)} images for evaluation has a box that is no crowd, "
        "so average precision has no value; evaluate images with boxes"
      )
    return average_precision(matches, self.num_classes).scores


def match_found(
  boxes: Float32[np.ndarray, "d 4"],
  scores: Float32[np.ndarray, " d"],
  classes: Int[np.ndarray, " d"],
  true: Float32[np.ndarray, "m 6"],
) -> Matches:
  """Returns the `match` of one image's part of `Detection.found`."""
  is_found = classes >= 0
  return match(boxes[is_found], scores[is_found], classes[is_found], true)
