"""A trained segmenter with all that using it needs.

Letters: B batch, S side of the squares, C channels, K classes, H height, W width.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from PIL import Image

from resnet_jax.data.images.masked_images import MaskedEvalTransform, to_original
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.images.png import encode_png
from resnet_jax.data.pipelines.host_batches import Transform
from resnet_jax.inference.classifier import check_finite
from resnet_jax.inference.image_grid import as_rgb
from resnet_jax.inference.places import FoundPlaces, PlaceFinder
from resnet_jax.models.operations import softmax
from resnet_jax.runtime.arrays import Array, UInt, UInt8
from resnet_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class PredictedMask(FoundPlaces):
  """The prediction for one image.

  Attributes:
    classes: the class of each pixel of the upright image; None if there is an error.
    shares: (class, its share of the pixels) of each class that was found, the largest
      first.
  """

  classes: UInt8[np.ndarray, "h w"] | None = None
  shares: tuple[tuple[int, float], ...] = ()

  def lines(self, names: Sequence[str]) -> list[str]:
    """Returns texts such as "cat 12.3 %"."""
    return [f"{names[label]} {100 * share:.1f} %" for label, share in self.shares]

  def as_json(self, names: Sequence[str]) -> dict[str, Any]:
    """Returns the classes and their shares as JSON values."""
    rows = [{"class": i, "label": names[i], "share": s} for i, s in self.shares]
    return {"labels": rows}

  def pictures(self, names: Sequence[str]) -> dict[str, bytes]:
    """Returns PNG files by the names of the folders for them.

    "masks" has the numbers of the classes, with a palette to look at. "pictures" has
    the image with the colours of the classes over it; it needs `image`.
    """
    del names
    assert self.classes is not None
    found = {"masks": _palette_png(self.classes)}
    if self.image is not None:
      found["pictures"] = encode_png(overlay(self.image, self.classes))
    return found


@dataclasses.dataclass(frozen=True)
class PixelClassifier(PlaceFinder[PredictedMask]):
  """A trained segmenter with its weights, preprocessing and class names.

  The attributes are those of `Classifier`. `preprocessing.crop` is S.
  """

  OUTPUTS: ClassVar[tuple[str, ...]] = "classes", "probabilities"

  def _answers(self, logits: Any) -> dict[str, Array]:
    """Returns what `__call__` returns.

    These are "classes", uint8 [B, S, S], and "probabilities", float32 [B, S, S, K].
    """
    if not isinstance(logits, dict) or "out" not in logits:
      raise UserError(
        f"{type(self.model).__name__} must return a dict with the logits 'out', "
        "[B, H, W, K], to be used on images"
      )
    probabilities = softmax(logits["out"])
    return {
      "classes": probabilities.argmax(-1).astype(jnp.uint8),
      "probabilities": probabilities,
    }

  def _transform(self, pixels: PixelFormat) -> Transform:
    size, count = self.preprocessing.crop, len(self.class_names)
    how = self.preprocessing.interpolation
    return MaskedEvalTransform(size, count, how, self.max_pixels, pixels)

  def _finish(self, outputs: dict[str, Array]) -> dict[str, Array]:
    highest = outputs["probabilities"].max(axis=(1, 2, 3))
    return {"classes": outputs["classes"], "highest": highest}

  def _found(
    self, of_file: Mapping[str, Any], outputs: Mapping[str, Any], size: tuple[int, int]
  ) -> PredictedMask:
    check_finite(np.asarray(outputs["highest"]), of_file["file"])
    classes = to_original(outputs["classes"], *size)
    counts = np.bincount(classes.ravel(), minlength=len(self.class_names))
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    shares = tuple((i, float(counts[i] / classes.size)) for i in order.tolist())
    return PredictedMask(**of_file, classes=classes, shares=shares)

  def _unreadable(self, file: str, error: str) -> PredictedMask:
    return PredictedMask(file, error)


def overlay(
  image: UInt[np.ndarray, "h w c"], classes: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
  """Returns an image with the colours of its classes over it; class 0 is black."""
  mixed = as_rgb(image).astype(np.uint16) + palette()[classes]
  found: np.ndarray = (mixed // 2).astype(np.uint8)
  return found


def palette() -> UInt8[np.ndarray, "256 3"]:
  """Returns the colours of PASCAL VOC's masks, which differ for all 256 numbers.

  The bits of a number become the highest bits of red, green and blue in turn.
  """
  numbers = np.arange(256)[:, None]
  colors = np.zeros((256, 3), np.uint8)
  for place in range(3):
    bits = (numbers >> 3 * place + np.arange(3)) & 1
    colors |= (bits << 7 - place).astype(np.uint8)
  return colors


def _palette_png(classes: UInt8[np.ndarray, "h w"]) -> bytes:
  image = Image.fromarray(classes, "P")
  image.putpalette(palette().tobytes())
  file = io.BytesIO()
  # All 8 bits: Pillow would write fewer for small numbers.
  image.save(file, "PNG", bits=8)
  return file.getvalue()
