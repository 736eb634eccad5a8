"""Turns an image and its boxes into a square that shows the whole image.

The image is scaled so that its long side fits the square. It lies at the top left, and
the rest of the square is grey. Boxes are rows x0, y0, x1, y1, class, crowd, see
`LabelSpec`.
Letters: S side of the square, C channels, M rows, n boxes of one image.
"""

import dataclasses

import numpy as np

from resnet_jax.data.images.crops import fitted_size, resize_exactly
from resnet_jax.data.images.decode import decode, open_image, upright_size
from resnet_jax.data.images.errors import ImageError, image_errors
from resnet_jax.data.images.pixels import RGB8, PixelFormat
from resnet_jax.data.labels import LabelSpec, are_within
from resnet_jax.runtime.arrays import Float32, Num

# Grey of the padding, as a fraction of white: the mean colour of ImageNet. torchvision
# pads normalised images with 0, which is the mean colour too.
PADDING = 0.45


def boxes_in_image(
  boxes: Num[np.ndarray, "n 4"], width: int, height: int, side: int
) -> Float32[np.ndarray, "n 4"]:
  """Maps boxes in the square of a whole image back to the image's own pixels.

  Args:
    boxes: x0, y0, x1, y1 in pixels of the square.
    width: width of the upright image, see `upright_size`, in pixels.
    height: its height.
    side: S.

  Returns:
    x0, y0, x1, y1, clipped to the image.
  """
  new_width, new_height = fitted_size(width, height, side)
  scale = np.array([width / new_width, height / new_height] * 2)
  found: np.ndarray = (boxes * scale).clip(0, [width, height] * 2).astype(np.float32)
  return found


@dataclasses.dataclass(frozen=True)
class BoxedTransform:
  """Scales an image and its boxes into a square, without randomness.

  Attributes:
    size: side of the square, S.
    max_boxes: rows of the label, M: the largest number of boxes of an image.
    interpolation: "bilinear" or "bicubic", antialiased.
    max_pixels: see `open_image`.
    pixels: the pixels of the images.
  """

  size: int
  max_boxes: int
  interpolation: str
  max_pixels: int
  pixels: PixelFormat = RGB8

  @property
  def label(self) -> LabelSpec:
    """Dtype and shape of the label: float32 (M, 6)."""
    return LabelSpec(np.dtype(np.float32), (self.max_boxes, 6))

  def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Maps the content of a file to [S, S, C].

    `boxes_in_image` maps boxes in it to the image.

    Raises:
      ImageError: see `decode`.
    """
    return self.pair(data, np.zeros((0, 6), np.float32), rng)[0]

  def pair(
    self, data: bytes, label: Float32[np.ndarray, "n 6"], rng: np.random.Generator
  ) -> tuple[np.ndarray, Float32[np.ndarray, "m 6"]]:
    """Maps the content of a file and its boxes to those of the square.

    Args:
      data: content of an image file.
      label: boxes in pixels of the upright image.
      rng: not used.

    Returns:
      Pixels [S, S, C] of `pixels.dtype`, and boxes in pixels of the square. The last
      rows are padding, with the class -1.

    Raises:
      ImageError: see `decode`; or a box is not within the image.
      ValueError: there are more than `max_boxes` boxes.
    """
    if len(label) > self.max_boxes:
      raise ValueError(f"{len(label)} boxes are more than max_boxes={self.max_boxes}")
    del rng
    with image_errors():
      head = open_image(data, self.max_pixels)
      width, height = upright_size(head)
      _check_boxes(label, width, height)
      image = decode(data, head, 1, self.pixels)
      size = fitted_size(width, height, self.size)
      whole = 0, 0, width, height
      image = resize_exactly(image, whole, size, self.interpolation)
    rows = np.zeros((self.max_boxes, 6), np.float32)
    rows[:, 4] = -1
    rows[: len(label)] = label
    rows[: len(label), :4] *= np.array([size[0] / width, size[1] / height] * 2)
    return self._padded(image), rows

  def _padded(self, image: np.ndarray) -> np.ndarray:
    """Returns [S, S, C] with the image at the top left."""
    height, width, channels = image.shape
    grey = round(PADDING * np.iinfo(image.dtype).max)
    square = np.full((self.size, self.size, channels), grey, image.dtype)
    square[:height, :width] = image
    return square


def _check_boxes(rows: np.ndarray, width: int, height: int) -> None:
  """Raises `ImageError` if a box does not lie within the image or has no area."""
  for index in np.flatnonzero(~are_within(rows, width, height))[:1]:
    box = rows[index, :4].tolist()
    raise ImageError(
      f"its box {box} (x0, y0, x1, y1) must have an area and lie within its "
      f"{width}x{height} pixels"
    )
