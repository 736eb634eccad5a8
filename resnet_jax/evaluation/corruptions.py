"""Common corruptions of images, at five strengths.

The functions and their numbers are those of the code of Hendrycks and Dietterich 2019,
"Benchmarking neural network robustness to common corruptions and perturbations":
github.com/hendrycks/robustness at 8190fe3, ImageNet-C/create_c/make_cifar_c.py for
small images and make_imagenet_c.py for large ones. As there, fractions of a pixel value
are cut off. Its weather, glass, motion and zoom blur, spatter and elastic transform are
left out. The published ImageNet-C was saved as JPEG afterwards; these images are not.

Shapes: B batch, H height, W width, C channels, 1 (grey) or 3 (red, green, blue).
"""

import dataclasses
import io
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import cv2
import numpy as np
import PIL.Image

from resnet_jax.runtime.arrays import Float64, UInt8
from resnet_jax.runtime.errors import UserError

STRENGTHS = (1, 2, 3, 4, 5)
SMALL = 64  # Images whose longer side has at most so many pixels are small.

Image = UInt8[np.ndarray, "h w c"]
Values = Float64[np.ndarray, "h w c"]  # In [0, 1], or to be clipped.
Random = np.random.Generator
# (images [B, H, W, C] uint8, place of the first one in the data set) -> images
Corrupt = Callable[[np.ndarray, int], np.ndarray]


def _values(image: Image) -> Values:
  values: np.ndarray = image / 255.0
  return values


def _image(values: Values) -> Image:
  image: np.ndarray = (np.clip(values, 0, 1) * 255).astype(np.uint8)
  return image


def gaussian_noise(image: Image, random: Random, deviation: float) -> Image:
  """Adds normal noise; its standard deviation is a part of the range of values."""
  return _image(_values(image) + random.normal(scale=deviation, size=image.shape))


def shot_noise(image: Image, random: Random, photons: float) -> Image:
  """Counts photons (Poisson); a white pixel has so many on average."""
  return _image(random.poisson(_values(image) * photons) / photons)


def impulse_noise(image: Image, random: Random, share: float) -> Image:
  """Sets this share of the values to 0 or 255, each with probability 1/2."""
  is_hit = random.random(image.shape) < share
  is_white = random.random(image.shape) < 0.5
  return np.where(is_hit, np.where(is_white, 255, 0), image).astype(np.uint8)


def speckle_noise(image: Image, random: Random, deviation: float) -> Image:
  """Multiplies each value by a normal number of mean 1."""
  return _image(_values(image) * random.normal(1, deviation, image.shape))


def gaussian_blur(image: Image, _: Random, sigma: float) -> Image:
  """Blurs as `scipy.ndimage.gaussian_filter` does; `sigma` in pixels."""
  side = 2 * int(4 * sigma + 0.5) + 1
  edge = cv2.BORDER_REPLICATE
  blurred = cv2.GaussianBlur(_values(image), (side, side), sigma, borderType=edge)
  return _image(blurred.reshape(image.shape))  # OpenCV drops a single channel.


def defocus_blur(image: Image, _: Random, disk: tuple[float, float]) -> Image:
  """Averages over a disk: (its radius, the sigma that smooths its edge), in pixels.

  As in the paper's code, disks of radius 8 and 10 brighten an image by 1 %, because
  smoothing mirrors them at the edge of their array.
  """
  radius, sigma = disk
  half, side = (8, 3) if radius <= 8 else (int(radius), 5)
  place = np.arange(-half, half + 1)
  is_inside = place**2 + place[:, None] ** 2 <= radius**2
  kernel = is_inside.astype(np.float32) / np.float32(is_inside.sum())
  smooth = cv2.GaussianBlur(kernel, (side, side), sigma)
  return _image(cv2.filter2D(_values(image), -1, smooth).reshape(image.shape))


def brightness(image: Image, _: Random, more: float) -> Image:
  """Adds to the value of a pixel's hue, saturation and value (HSV)."""
  values = _values(image)
  value = values.max(axis=2, keepdims=True)
  brighter = np.minimum(value + more, 1)
  # All channels are scaled alike. Black becomes grey.
  scaled = values * brighter / np.where(value > 0, value, 1)
  return _image(np.where(value > 0, scaled, brighter))


def contrast(image: Image, _: Random, share: float) -> Image:
  """Keeps this share of each channel's difference from its mean over the image."""
  values = _values(image)
  mean = values.mean(axis=(0, 1), keepdims=True)
  return _image((values - mean) * share + mean)


def saturate(image: Image, _: Random, change: tuple[float, float]) -> Image:
  """Maps a pixel's saturation s in HSV to factor * s + offset."""
  factor, offset = change
  values = _values(image)
  value = values.max(axis=2, keepdims=True)
  # Distance of each channel from the largest one, relative to the largest distance. A
  # grey pixel has no hue; as in the paper's code, it is taken for red.
  away = value - values
  most = away.max(axis=2, keepdims=True)
  away = np.where(most > 0, away / np.where(most > 0, most, 1), [0, 1, 1])
  saturation = most / np.where(value > 0, value, 1)
  saturation = np.clip(saturation * factor + offset, 0, 1)
  return _image(value * (1 - away * saturation))


def jpeg_compression(image: Image, _: Random, quality: int) -> Image:
  """Compresses with Pillow at this quality of 100, and decodes."""
  buffer = io.BytesIO()
  _to_pillow(image).save(buffer, "JPEG", quality=quality)
  with PIL.Image.open(buffer) as decoded:
    return np.asarray(decoded).reshape(image.shape)


def pixelate(image: Image, _: Random, share: float) -> Image:
  """Shrinks both sides to this share by averaging, and enlarges them again."""
  box, (height, width) = PIL.Image.Resampling.BOX, image.shape[:2]
  small = max(1, int(width * share)), max(1, int(height * share))
  shrunk = _to_pillow(image).resize(small, box)
  return np.asarray(shrunk.resize((width, height), box)).reshape(image.shape)


def _to_pillow(image: Image) -> PIL.Image.Image:
  return PIL.Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


@dataclasses.dataclass(frozen=True)
class Corruption:
  """A function, and its last argument for each strength.

  Attributes:
    apply: one of the functions above.
    small: for small images, from make_cifar_c.py.
    large: for large images, from make_imagenet_c.py.
    needs_color: whether a grey image cannot have it.
  """

  apply: Callable[[Image, Random, Any], Image]
  small: Sequence[Any]
  large: Sequence[Any]
  needs_color: bool = False


CORRUPTIONS = {
  "gaussian_noise": Corruption(
    gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)
  ),
  "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
  "impulse_noise": Corruption(
    impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)
  ),
  "speckle_noise": Corruption(
    speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)
  ),
  "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
  "defocus_blur": Corruption(
    defocus_blur,
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
  ),
  "brightness": Corruption(
    brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)
  ),
  "contrast": Corruption(
    contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)
  ),
  "saturate": Corruption(
    saturate,
    ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    needs_color=True,
  ),
  "jpeg_compression": Corruption(
    jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)
  ),
  "pixelate": Corruption(
    pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)
  ),
}


def parse_names(text: str) -> list[str]:
  """Returns the names of a list with commas; "all" is all of them.

  Raises:
    UserError: a name is unknown.
  """
  names = [*CORRUPTIONS] if text == "all" else [*dict.fromkeys(text.split(","))]
  for name in names:
    if name not in CORRUPTIONS:
      raise UserError(
        f"{name!r} is no corruption; the names are all, {', '.join(CORRUPTIONS)}"
      )
  return names


def fit_channels(names: Sequence[str], channels: int) -> list[str]:
  """Leaves out the corruptions that need colour if the images are grey.

  Raises:
    UserError: the images have neither 1 nor 3 channels, or no corruption is left.
  """
  if channels not in (1, 3):
    raise UserError(f"corruptions need images of 1 or 3 channels, not {channels}")
  fitting = [n for n in names if channels == 3 or not CORRUPTIONS[n].needs_color]
  if not fitting:
    raise UserError(f"{', '.join(names)} needs colour, and the images are grey")
  return fitting


def corrupt(image: Image, name: str, strength: int, index: int) -> Image:
  """Returns a corrupted image; the noise is a function of the last three arguments.

  Args:
    image: its longer side chooses between the numbers for small and large images.
    name: a key of `CORRUPTIONS`.
    strength: from 1 to 5.
    index: place of the image in its data set.
  """
  row = CORRUPTIONS[name]
  numbers = row.small if max(image.shape[:2]) <= SMALL else row.large
  random = np.random.default_rng([*name.encode(), strength, index])
  return row.apply(image, random, numbers[strength - 1])


def corrupt_batch(name: str, strength: int) -> Corrupt:
  """Returns a function that corrupts the images of a batch; see `corrupt`."""

  def one(image: Image, index: int) -> Image:
    return corrupt(image, name, strength, index)

  def batch(
    images: UInt8[np.ndarray, "b h w c"], first: int
  ) -> UInt8[np.ndarray, "b h w c"]:
    places = range(first, first + len(images))
    if max(images.shape[1:3]) <= SMALL:  # Threads would take longer.
      return np.stack([*map(one, images, places)])
    with futures.ThreadPoolExecutor() as pool:
      return np.stack([*pool.map(one, images, places)])

  return batch
