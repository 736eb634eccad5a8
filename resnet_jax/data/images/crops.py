"""Turns the content of image files into squares on the host, one image at a time.

Crops are boxes (left, top, width, height) in the pixels of the decoded image.
"""

import dataclasses
import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from resnet_jax.data.images.auto_augment import rand_augment, trivial_augment
from resnet_jax.data.images.decode import decode, decode_part, open_image, upright_size
from resnet_jax.data.images.errors import ImageError, image_errors
from resnet_jax.data.images.pixels import RGB8, PixelFormat
from resnet_jax.runtime.errors import setting_name

Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]


def random_resized_box(
  rng: np.random.Generator,
  width: int,
  height: int,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> PixelBox:
  """Draws a box in an image (Szegedy et al. 2014, section 6), as torchvision does.

  Args:
    rng: source of randomness.
    width: width of the image, in pixels.
    height: height of the image, in pixels.
    scale: range of the box's fraction of the image area.
    ratio: range of the box's width / height; its logarithm is drawn uniformly.
  """
  for _ in range(10):
    # Only one call of the generator, because a call costs as much as all the rest.
    for_area, for_aspect, for_left, for_top = rng.random(4).tolist()
    area = width * height * (scale[0] + for_area * (scale[1] - scale[0]))
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** for_aspect
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(for_left * (width - w + 1)), int(for_top * (height - h + 1))
      return left, top, w, h
  # No box fitted: take the largest central one of an allowed ratio.
  w = min(width, round(height * ratio[1]))
  h = min(height, round(width / ratio[0]))
  return (width - w) // 2, (height - h) // 2, w, h


def resized_box(
  width: int,
  height: int,
  resize: int,
  crop: int,
  rng: np.random.Generator | None = None,
) -> Box:
  """Returns the part of an image that remains after resizing and cropping.

  Args:
    width: width of the image, in pixels.
    height: height of the image, in pixels.
    resize: new length of the short side; 0 keeps the size.
    crop: side of the square, at most `resize`.
    rng: draws the position of the crop; None crops the middle.

  Returns:
    The box that becomes the square when it is resized to `crop` pixels a side.

  Raises:
    ImageError: the image is not resized and is smaller than the square.
  """
  short = min(width, height)
  resize = resize or short
  new_width, new_height = width * resize // short, height * resize // short
  room = new_width - crop, new_height - crop
  if min(room) < 0:
    raise ImageError(
      f"its {new_width}x{new_height} pixels do not hold a square of {crop}x{crop}; "
      f"set {setting_name('data.eval_resize')}, or train_resize"
    )
  if rng is None:
    left, top = (round(pixels / 2) for pixels in room)
  else:
    left, top = (int(rng.integers(pixels + 1)) for pixels in room)
  x, y = width / new_width, height / new_height
  return left * x, top * y, crop * x, crop * y


def fitted_size(width: int, height: int, side: int) -> tuple[int, int]:
  """Returns (width, height) after scaling the long side to `side`, at least 1 pixel."""
  scale = side / max(width, height)
  return max(1, round(width * scale)), max(1, round(height * scale))


def resize_exactly(
  image: np.ndarray, box: Box, size: int | tuple[int, int], interpolation: str
) -> np.ndarray:
  """Resizes a part of an image with antialiasing, as Pillow and torchvision do.

  Args:
    image: [H, W, C] uint8 or uint16.
    box: the part to resize.
    size: side of the result, or its (width, height), in pixels.
    interpolation: "bilinear" or "bicubic".

  Returns:
    [size, size, C] or [height, width, C] of the same dtype, rounded.
  """
  shape = (size, size) if isinstance(size, int) else size
  left, top, width, height = box
  method = Image.Resampling[interpolation.upper()]
  corners = (left, top, left + width, top + height)

  def resize(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(shape, method, corners))

  if image.dtype == np.uint8 and image.shape[2] == 3:
    return resize(image)
  # Pillow has no other modes whose channels are independent of each other.
  channels = [np.ascontiguousarray(image[..., i]) for i in range(image.shape[2])]
  if image.dtype == np.uint8:
    return np.stack([*map(resize, channels)], axis=-1)
  resized = np.stack([resize(x.astype(np.float32)) for x in channels], axis=-1)
  rounded: np.ndarray = np.rint(resized).clip(0, np.iinfo(image.dtype).max)
  return rounded.astype(image.dtype)


def resize_fast(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes bilinearly without antialiasing, or by averages if it shrinks 2x or more.

  Args:
    image: [H, W, C] uint8 or uint16.
    size: side of the result, in pixels.

  Returns:
    [size, size, C] of the same dtype.
  """
  # The decoder already shrinks JPEGs. For other formats, bilinear resizing would skip
  # most pixels.
  much = min(image.shape[:2]) >= 2 * size
  method = cv2.INTER_AREA if much else cv2.INTER_LINEAR
  # OpenCV resizes at most four channels at a time.
  parts = [
    cv2.resize(image[..., i : i + 4], (size, size), interpolation=method)
    for i in range(0, image.shape[2], 4)
  ]
  if len(parts) > 1:
    return np.concatenate([part.reshape(size, size, -1) for part in parts], axis=2)
  return parts[0].reshape(size, size, -1)  # OpenCV drops a single channel.


@dataclasses.dataclass(frozen=True)
class EvalTransform:
  """Resizes the short side and crops the middle.

  Attributes:
    resize: new short side in pixels; 0 keeps the size.
    crop: side of the square.
    interpolation: "bilinear" or "bicubic", antialiased.
    max_pixels: see `open_image`.
    pixels: the pixels of the images.
  """

  resize: int
  crop: int
  interpolation: str
  max_pixels: int
  pixels: PixelFormat = RGB8

  @property
  def size(self) -> int:
    """Side of the images, in pixels."""
    return self.crop

  def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Maps the content of a file to [crop, crop, C], without randomness.

    Raises:
      ImageError: see `decode` and `resized_box`. Their other errors become this one.
    """
    del rng
    with image_errors():
      head = open_image(data, self.max_pixels)
      box = resized_box(*upright_size(head), self.resize, self.crop)
      image = decode(data, head, 1, self.pixels)
      return resize_exactly(image, box, self.crop, self.interpolation)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
  """Crops a part and may augment it.

  Attributes:
    crop: "random_resized" is a part of random size and shape, "random" is a square of
      the resized image, "center" is the middle of the resized image.
    resize: short side for "random" and "center", in pixels.
    size: side of the result.
    min_area: smallest fraction of the image area for "random_resized".
    interpolation: for "random" and "center", antialiased.
    policy: "rand", "trivial" or "": see `auto_augment`.
    magnitude: strength of "rand", from 0 to 30.
    max_pixels: see `open_image`.
    own: (image [size, size, C], generator) -> image of the same shape and dtype, the
      user's augmentation, which is applied last. It must be picklable for worker
      processes.
    pixels: the pixels of the images.
  """

  crop: str
  resize: int
  size: int
  min_area: float
  interpolation: str
  policy: str
  magnitude: int
  max_pixels: int
  own: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
  pixels: PixelFormat = RGB8

  def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Maps the content of a file to [size, size, C] of `pixels.dtype`.

    Raises:
      ImageError: see `decode` and `resized_box`. Their other errors become this one.
    """
    with image_errors():
      head = open_image(data, self.max_pixels)
      if self.crop in ("random", "center"):
        position = rng if self.crop == "random" else None
        box = resized_box(*upright_size(head), self.resize, self.size, position)
        image = decode(data, head, 1, self.pixels)
        image = resize_exactly(image, box, self.size, self.interpolation)
      else:
        box = random_resized_box(rng, *upright_size(head), (self.min_area, 1.0))
        # Decode at a smaller size if the part still has `size` pixels a side.
        factor = 1
        while factor < 8 and min(box[2:]) >= 2 * factor * self.size:
          factor *= 2
        part = decode_part(data, head, box, factor, self.pixels)
        image = resize_fast(part, self.size)
    if self.policy == "rand":
      image = rand_augment(image, rng, magnitude=self.magnitude)
    elif self.policy == "trivial":
      image = trivial_augment(image, rng)
    return image if self.own is None else self.own(image, rng)
