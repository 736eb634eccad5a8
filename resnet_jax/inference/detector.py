"""A trained detector with all that using it needs.

detector = load("runs/detector")
for found in detector.predict(["photos"]):
  print(found.file, found.boxes, [detector.class_names[i] for i in found.classes])

Letters: B batch, S side of the squares, H height, W width, C channels, K classes, A
anchors, n objects.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.images.boxed_images import BoxedTransform, boxes_in_image
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.images.png import encode_png
from resnet_jax.data.pipelines.host_batches import Transform
from resnet_jax.inference.drawn_boxes import draw_boxes
from resnet_jax.inference.image_grid import as_rgb
from resnet_jax.inference.places import FoundPlaces, PlaceFinder
from resnet_jax.models.anchors import detect
from resnet_jax.models.boxes import clip_boxes, decode_boxes
from resnet_jax.models.variables import Variables
from resnet_jax.runtime.arrays import Array, Float32, Int32, Num, UInt, UInt8

_SHOWN = 0.5  # The lowest probability of an object that is drawn or printed.


_NO_BOXES, _NO_SCORES = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
_NO_CLASSES = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class FoundObjects(FoundPlaces):
  """The objects in one image, the highest scores first.

  Attributes:
    boxes: x0, y0, x1, y1 in pixels of the upright image.
    scores: probabilities.
    classes: numbers of classes.
  """

  boxes: Float32[np.ndarray, "n 4"] = dataclasses.field(default_factory=_NO_BOXES.copy)
  scores: Float32[np.ndarray, " n"] = dataclasses.field(default_factory=_NO_SCORES.copy)
  classes: Int32[np.ndarray, " n"] = dataclasses.field(default_factory=_NO_CLASSES.copy)

  def lines(self, names: Sequence[str]) -> list[str]:
    """Returns texts such as "cat 93.1 % at 10,20 to 200,180"."""
    texts = []
    for box, score, label in zip(self.boxes, self.scores, self.classes, strict=True):
      if score >= _SHOWN:
        x0, y0, x1, y1 = np.round(box).astype(int)
        texts.append(f"{names[label]} {100 * score:.1f} % at {x0},{y0} to {x1},{y1}")
    return texts

  def as_json(self, names: Sequence[str]) -> dict[str, Any]:
    """Returns all objects as JSON values."""
    rows = zip(
      self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
    )
    return {
      "objects": [
        {"class": i, "label": names[i], "score": score, "box": box}
        for i, score, box in rows
      ]
    }

  def pictures(self, names: Sequence[str]) -> dict[str, bytes]:
    """Returns PNG files by the names of the folders for them; it needs `image`."""
    assert self.image is not None
    return {"pictures": encode_png(self.draw(self.image, names))}

  def draw(
    self,
    image: UInt[np.ndarray, "h w c"],
    names: Sequence[str],
    score: float = _SHOWN,
    enlarge: int = 1,
  ) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws the objects with their names and scores on an image.

    Args:
      image: the upright image to which the boxes belong.
      names: of the classes.
      score: objects with a lower score are left out.
      enlarge: factor of the size, for small images.
    """
    chosen = np.flatnonzero(self.scores >= score)[::-1]  # The best ones on top.
    texts = [f"{names[self.classes[i]]}: {100 * self.scores[i]:.0f} %" for i in chosen]
    rgb, boxes, classes = as_rgb(image), self.boxes[chosen], self.classes[chosen]
    return draw_boxes(rgb, boxes, classes, texts, enlarge)


@dataclasses.dataclass(frozen=True)
class Detector(PlaceFinder[FoundObjects]):
  """A trained detector with its weights, preprocessing and class names.

  The attributes are those of `Classifier`, and these:

  Attributes:
    score: objects have a higher probability.
    nms: see `detect`.
    most: largest number of objects in an image.
  """

  score: float = 0.05
  nms: float = 0.5
  most: int = 100

  OUTPUTS: ClassVar[tuple[str, ...]] = "boxes", "scores", "classes", "is_finite"

  @property
  def answer(self) -> str:
    """The output of an export, see `answer_of`."""
    return "candidates"

  def apply(
    self, variables: Variables, images: Num[Array, "b h w c"]
  ) -> dict[str, Array]:
    """Finds the objects in images of any size; see `Classifier.apply`.

    Returns:
      "boxes", float32 [B, n, 4] in pixels of the images; "scores", [B, n]; "classes",
      int32 [B, n], -1 where there is no object; and "is_finite", bool [B], whether all
      outputs of the network are finite.
    """
    outputs, anchors, size = self._outputs(variables, images)
    found = detect(outputs, anchors, size, self.score, self.nms, self.most)
    finite = [jnp.isfinite(x).all(axis=(1, 2)) for x in outputs.values()]
    return {
      "boxes": found.boxes,
      "scores": found.scores,
      "classes": jnp.where(found.mask, found.labels, -1),
      "is_finite": jnp.stack(finite).all(axis=0),
    }

  def answer_of(
    self, variables: Variables, images: Num[Array, "b h w c"]
  ) -> Float32[Array, "b a _"]:
    """Returns what an export computes: a box and K probabilities for each anchor.

    They are [B, A, 4 + K]: x0, y0, x1, y1 in pixels of the image, then the
    probabilities. Non-maximum suppression is left to the caller.
    """
    outputs, anchors, size = self._outputs(variables, images)
    every = jnp.concatenate([jnp.asarray(level) for level in anchors])

    def boxes_of(deltas: Array) -> Array:
      return clip_boxes(decode_boxes(deltas, every), size)

    clipped = jax.vmap(boxes_of)(outputs["boxes"])
    return jnp.concatenate([clipped, jax.nn.sigmoid(outputs["scores"])], axis=-1)

  def _outputs(
    self, variables: Variables, images: Array
  ) -> tuple[dict[str, Array], tuple[np.ndarray, ...], tuple[int, int]]:
    model: Any = self.model
    size = images.shape[1], images.shape[2]
    found = model.apply(variables, self.normalized(images), train=False)
    return found, model.anchors(size), size

  def _transform(self, pixels: PixelFormat) -> Transform:
    size, how = self.preprocessing.crop, self.preprocessing.interpolation
    return BoxedTransform(size, 1, how, self.max_pixels, pixels)

  def _found(
    self, of_file: Mapping[str, Any], outputs: Mapping[str, Any], size: tuple[int, int]
  ) -> FoundObjects:
    if not outputs["is_finite"]:
      raise FloatingPointError(
        f"the network's outputs for {of_file['file']} are not finite; check its "
        "weights, and the mean and std of the images"
      )
    is_object = outputs["classes"] >= 0
    boxes, scores, classes = (outputs[name][is_object] for name in self.OUTPUTS[:3])
    boxes = boxes_in_image(boxes, *size, self.preprocessing.crop)
    return FoundObjects(**of_file, boxes=boxes, scores=scores, classes=classes)

  def _unreadable(self, file: str, error: str) -> FoundObjects:
    return FoundObjects(file, error)
