"""A trained segmenter with all that using it needs.

Letters: B batch, S side of the squares, C channels, K classes, H height, W width.
"""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from resnet_jax.data.images.decode import decode, open_image, upright_size
from resnet_jax.data.images.errors import image_errors
from resnet_jax.data.images.masked_images import MaskedEvalTransform, to_original
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.images.png import encode_png
from resnet_jax.data.pipelines.single_pass import find_images, read_batches
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.inference.classifier import Classifier, check_finite
from resnet_jax.inference.image_grid import as_rgb
from resnet_jax.inference.many_batches import run_batches
from resnet_jax.models.operations import softmax
from resnet_jax.runtime.arrays import Array, Float32, UInt, UInt8
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import create_mesh, fill_devices


@dataclasses.dataclass(frozen=True)
class PredictedMask:
  """The prediction for one image.

  Attributes:
    file: path of the image.
    error: "" if the image was read. Else the reason; then only `file` is also set.
    classes: the class of each pixel of the upright image; None if there is an error.
    shares: (class, its share of the pixels) of each class that was found, the largest
      first.
    image: the pixels; None unless requested.
  """

  file: str
  error: str = ""
  classes: UInt8[np.ndarray, "h w"] | None = None
  shares: tuple[tuple[int, float], ...] = ()
  image: UInt[np.ndarray, "h w c"] | None = None

  def lines(self, names: Sequence[str]) -> list[str]:
    """Returns texts such as "cat 12.3 %"."""
    return [f"{names[label]} {100 * share:.1f} %" for label, share in self.shares]

  def as_json(self, names: Sequence[str]) -> dict[str, Any]:
    """Returns the classes and their shares as JSON values."""
    rows = [{"class": i, "label": names[i], "share": s} for i, s in self.shares]
    return {"labels": rows}

  def pictures(self) -> dict[str, bytes]:
    """Returns PNG files by the names of the folders for them.

    "masks" has the numbers of the classes, with a palette to look at. "pictures" has
    the image with the colours of the classes over it; it needs `image`.
    """
    assert self.classes is not None
    found = {"masks": _palette_png(self.classes)}
    if self.image is not None:
      found["pictures"] = encode_png(overlay(self.image, self.classes))
    return found


@dataclasses.dataclass(frozen=True)
class PixelClassifier(Classifier):
  """A trained segmenter with its weights, preprocessing and class names.

  The attributes are those of `Classifier`. `preprocessing.crop` is S: an image is
  scaled so that its long side is S, and padded at the right and the bottom.
  """

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
    return {"classes": _classes(probabilities), "probabilities": probabilities}

  def predict(
    self,
    files: FileList | Sequence[str],
    *,
    batch_size: int = 8,
    images: bool = False,
  ) -> Iterator[PredictedMask]:
    """Yields the prediction for each image, in order, in bounded memory.

    Args:
      files: the images, or paths of files and folders as `find_images` takes them.
      batch_size: largest number of images per batch, over all devices.
      images: whether predictions have the pixels of their image.

    Raises:
      FileNotFoundError: a path does not exist.
      FloatingPointError: a probability is not finite.
    """
    mesh = create_mesh()
    if not isinstance(files, FileList):
      files = find_images([files] if isinstance(files, str) else files)
    size, count = self.preprocessing.crop, len(self.class_names)
    pixels = PixelFormat(self.channels, self.preprocessing.max_value)
    how = self.preprocessing.interpolation
    batches = read_batches(
      files,
      self.preprocessing,
      fill_devices(min(batch_size, len(files)), mesh),
      self.max_pixels,
      transform=MaskedEvalTransform(size, count, how, self.max_pixels, pixels),
    )

    def outputs(found: dict[str, Array]) -> tuple[Array, Array]:
      answers = found[self.answer]
      return _classes(answers), answers.max(axis=(1, 2, 3))

    first = 0
    for batch, found in run_batches(self, batches, (self.answer,), outputs, mesh):
      errors = dict(batch["errors"])
      for row in range(min(len(batch["mask"]), len(files) - first)):
        file = files.name(first + row)
        if not batch["mask"][row]:
          error = errors[first + row].removeprefix(f"{file}: ")
          yield PredictedMask(file, error)
          continue
        check_finite(found[1][row : row + 1], file)
        data, _ = files[first + row]
        yield self._of_file(file, data, found[0][row], pixels if images else None)
      first += len(batch["mask"])

  def _of_file(
    self, file: str, data: bytes, square: np.ndarray, pixels: PixelFormat | None
  ) -> PredictedMask:
    with image_errors():
      head = open_image(data, self.max_pixels)
      image = None if pixels is None else decode(data, head, 1, pixels)
    classes = to_original(square, *upright_size(head))
    counts = np.bincount(classes.ravel(), minlength=len(self.class_names))
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    shares = tuple((i, float(counts[i] / classes.size)) for i in order.tolist())
    return PredictedMask(file, classes=classes, shares=shares, image=image)


def _classes(probabilities: Float32[Array, "b h w k"]) -> UInt8[Array, "b h w"]:
  return probabilities.argmax(-1).astype(jnp.uint8)


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
