"""Turns an image and its mask into squares of the same part of the picture.

A mask has the number of a class at each pixel, and 255 where the class is unknown.
Letters: H height, W width, S side of the square, C channels, K classes.
"""

import abc
import dataclasses
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from resnet_jax.data.images.crops import fitted_size, resize_exactly
from resnet_jax.data.images.decode import decode, open_image, upright_size
from resnet_jax.data.images.errors import ImageError, image_errors
from resnet_jax.data.images.exif import turn_upright
from resnet_jax.data.images.pixels import RGB8, Head, PixelFormat
from resnet_jax.data.labels import IGNORED, LabelSpec
from resnet_jax.runtime.arrays import Shaped, UInt8

# Kinds of a PNG, by the number in its header.
_GREY, _PALETTE = 0, 3
_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with transparency", 6: "RGBA"}
_CONVERT = (
  "save the numbers of the classes with Pillow: "
  "Image.fromarray(classes.astype('uint8')).save('mask.png')"
)


def decode_mask(
  data: bytes, num_classes: int, max_pixels: int
) -> UInt8[np.ndarray, "h w"]:
  """Decodes the content of a mask's file to the numbers of classes, upright.

  Of a PNG with a palette, the numbers are the indices and not the colours. Of a grey
  PNG with 8 bits, they are the values.

  Args:
    data: content of the file.
    num_classes: K.
    max_pixels: see `open_image`.

  Raises:
    ImageError: the file is none of these, is damaged, has too many pixels, or has a
      value that is neither in [0, K) nor 255.
  """
  try:
    with image_errors():
      classes = _read_mask(data, max_pixels)
  except ImageError as error:
    raise ImageError(f"its mask cannot be used: {error}") from error
  wrong = (classes >= num_classes) & (classes != IGNORED)
  if wrong.any():
    y, x = (int(place[0]) for place in np.nonzero(wrong))
    raise ImageError(
      f"its mask has the value {classes[y, x]} at x={x}, y={y}, which must be the "
      f"number of a class, in [0, {num_classes}), or {IGNORED} to ignore the pixel"
    )
  return classes


def _read_mask(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "h w"]:
  head = open_image(data, max_pixels)
  if head.format != "PNG":
    raise ImageError(f"it is {head.format} and must be PNG; {_CONVERT}")
  if data[12:16] != b"IHDR":
    raise ImageError("it is a damaged PNG: its first part is not the header")
  bits, kind = data[24], data[25]
  # Programs that make PNG files smaller scale grey to fewer bits: 255 of 8 bits becomes
  # 1 of 1 bit. So these values need not be the numbers that someone drew.
  if kind != _PALETTE and (kind, bits) != (_GREY, 8):
    raise ImageError(
      f"it is {_KINDS.get(kind, 'of an unknown kind')} with {bits} bit"
      f"{'s' * (bits > 1)} a channel, and must have a palette or be grey with 8 bits; "
      f"{_CONVERT}"
    )
  with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
    try:
      classes = np.asarray(image)
    except Exception as error:  # Pillow raises errors of many types.
      raise ImageError(f"it is truncated or damaged ({error})") from error
  return turn_upright(classes, head.orientation)


def to_original(
  square: Shaped[np.ndarray, "s s *c"], width: int, height: int
) -> Shaped[np.ndarray, "{height} {width} *c"]:
  """Undoes the scaling and the padding of `MaskedEvalTransform`.

  Each pixel gets the nearest value, so classes stay classes.

  Args:
    square: classes [S, S] or logits [S, S, K] that were predicted for a square.
    width: width of the upright image, see `upright_size`, in pixels.
    height: its height.
  """
  fitted = fitted_size(width, height, len(square))
  found: np.ndarray = _nearest(square, (0, 0, *fitted), (width, height))
  return found


class _View(NamedTuple):
  """A part of an image, and its size in the square.

  Attributes:
    box: left, top, width and height, in pixels of the upright image.
    size: (width, height) in the square, each at most S.
  """

  box: tuple[float, float, float, float]
  size: tuple[int, int]

  def of_image(self, image: np.ndarray, side: int, interpolation: str) -> np.ndarray:
    """Returns the part of [H, W, C] as [S, S, C], padded with 0 (black)."""
    return self._padded(resize_exactly(image, self.box, self.size, interpolation), side)

  def of_mask(self, mask: np.ndarray, side: int) -> np.ndarray:
    """Returns the part of [H, W] as [S, S], padded with 255."""
    return self._padded(_nearest(mask, self.box, self.size), side, IGNORED)

  def _padded(self, part: np.ndarray, side: int, value: int = 0) -> np.ndarray:
    height, width = part.shape[:2]
    if height == width == side:
      return part
    square = np.full((side, side, *part.shape[2:]), value, part.dtype)
    square[:height, :width] = part
    return square


def _nearest(
  values: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
  """Resizes a part of [H, W, ...] to (width, height): the values at pixel centres."""
  left, top, width, height = box

  def places(start: float, length: float, count: int, limit: int) -> np.ndarray:
    centres = start + (np.arange(count) + 0.5) * (length / count)
    # At the end of the image, rounding may lead to the pixel after the last.
    found: np.ndarray = np.minimum(centres.astype(int), limit - 1)
    return found

  columns = places(left, width, size[0], values.shape[1])
  rows = places(top, height, size[1], values.shape[0])
  found: np.ndarray = values[rows[:, None], columns]
  return found


def _fitting_mask(
  head: Head, content: bytes, num_classes: int, max_pixels: int
) -> np.ndarray:
  """Returns the mask of the image with this header; the sizes must be equal."""
  mask = decode_mask(content, num_classes, max_pixels)
  size, found = upright_size(head), mask.shape[::-1]
  if found != size:
    hint = ""
    if found == head.size:
      hint = ": the mask must be turned upright, as the EXIF data turn the image"
    raise ImageError(
      f"it has {size[0]}x{size[1]} pixels, and its mask has {found[0]}x{found[1]}, "
      f"which must be equal{hint}"
    )
  return mask


@dataclasses.dataclass(frozen=True)
class _MaskedTransform(abc.ABC):
  """What both transforms have.

  Attributes:
    size: side of the square, S.
    num_classes: K.
    interpolation: of the image, "bilinear" or "bicubic", antialiased. The mask takes
      the nearest pixels.
    max_pixels: see `open_image`.
    pixels: the pixels of the images.
  """

  size: int
  num_classes: int
  interpolation: str
  max_pixels: int
  pixels: PixelFormat = RGB8

  @property
  def label(self) -> LabelSpec:
    """The mask of a square."""
    return LabelSpec(np.dtype(np.uint8), (self.size, self.size))

  @abc.abstractmethod
  def _view(self, width: int, height: int, rng: np.random.Generator) -> _View:
    """Returns the part of an upright image that the square shows."""

  def pair(
    self, data: bytes, label: Any, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """Maps the contents of an image and of its mask to [S, S, C] and [S, S].

    Raises:
      ImageError: see `decode` and `decode_mask`, or their sizes differ.
    """
    with image_errors():
      head = open_image(data, self.max_pixels)
      mask = _fitting_mask(head, label, self.num_classes, self.max_pixels)
      view = self._view(*upright_size(head), rng)
      return self._square(data, head, view), view.of_mask(mask, self.size)

  def _square(self, data: bytes, head: Head, view: _View) -> np.ndarray:
    image = decode(data, head, 1, self.pixels)
    return view.of_image(image, self.size, self.interpolation)


@dataclasses.dataclass(frozen=True)
class MaskedTrainTransform(_MaskedTransform):
  """Scales and crops at random, like torchvision's segmentation references.

  The short side becomes a random whole number of pixels in `scale` times `resize`. Then
  a random square is cropped; the training step mirrors it. If the image is smaller, it
  is padded on the right and at the bottom: with 0 (black) in the image, and with 255 in
  the mask.

  The attributes are those of `_MaskedTransform`, and these:

  Attributes:
    resize: short side before the random scale, in pixels; 0 takes the image's own.
    scale: smallest and largest factor of the random scale.
  """

  resize: int = 0
  scale: tuple[float, float] = (0.5, 2.0)

  def _view(self, width: int, height: int, rng: np.random.Generator) -> _View:
    short = min(width, height)
    low, high = (max(1, int(x * (self.resize or short))) for x in self.scale)
    new_short = int(rng.integers(low, high + 1))
    new = width * new_short // short, height * new_short // short
    size = min(new[0], self.size), min(new[1], self.size)
    left = int(rng.integers(new[0] - size[0] + 1))
    top = int(rng.integers(new[1] - size[1] + 1))
    x, y = width / new[0], height / new[1]
    return _View((left * x, top * y, size[0] * x, size[1] * y), size)


@dataclasses.dataclass(frozen=True)
class MaskedEvalTransform(_MaskedTransform):
  """Scales the whole image so that its long side is S, and pads it to a square.

  The padding is on the right and at the bottom: 0 (black) in the image, and 255 in the
  mask, so that it does not count. torchvision evaluates images one by one with a short
  side of 520 pixels and without padding; XLA compiles a program for one shape.

  The attributes are those of `_MaskedTransform`.
  """

  def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Maps the content of an image to [S, S, C], without randomness.

    `to_original` maps what is predicted for it to the size of the image.

    Raises:
      ImageError: see `decode`.
    """
    with image_errors():
      head = open_image(data, self.max_pixels)
      return self._square(data, head, self._view(*upright_size(head), rng))

  def _view(self, width: int, height: int, rng: np.random.Generator) -> _View:
    del rng
    return _View((0, 0, width, height), fitted_size(width, height, self.size))
