"""From the content of an image file to pixels, quickly, or to one clear error.

OpenCV decodes ordinary JPEG files: it is the fastest that was measured
(benchmarks/NOTES.md), and lets other threads work meanwhile. Pillow has the rest.
"""

import io
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps

from resnet_jax.data.files import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x0112  # EXIF's; 5 and above swap width and height.
_REDUCED = {
  1: 0,
  2: cv2.IMREAD_REDUCED_COLOR_2,
  4: cv2.IMREAD_REDUCED_COLOR_4,
  8: cv2.IMREAD_REDUCED_COLOR_8,
}

# The loader's threads are the parallelism; OpenCV's own would only be in their way.
cv2.setNumThreads(0)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
  """Reads the head of an image file.

  Args:
    data: content of a JPEG, PNG, WebP, GIF or BMP file, whatever its name.
    max_pixels: largest width times height, which bounds the memory of decoding.

  Raises:
    ImageError: it is no such image, or larger.
  """
  if not data:
    raise ImageError("it is empty")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Of Pillow's own limit of pixels.
      image = Image.open(io.BytesIO(data), formats=FORMATS)
  except Image.DecompressionBombError:
    raise ImageError(f"it has more than {max_pixels} pixels") from None
  except Exception as error:  # Pillow raises all kinds.
    kind = "HEIF" if data[4:8] == b"ftyp" else f"content begins with {data[:8]!r}"
    raise ImageError(f"it is none of {', '.join(FORMATS)} ({kind})") from error
  if image.width * image.height > max_pixels:
    raise ImageError(
      f"it has {image.width}x{image.height} pixels, more than {max_pixels}"
    )
  return image


def upright_size(image: Image.Image) -> tuple[int, int]:
  """Returns (width, height) after the rotation that EXIF asks for."""
  turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= 5
  return image.size[::-1] if turned else image.size


def decode(data: bytes, image: Image.Image, factor: int = 1) -> np.ndarray:
  """Decodes the first picture of an image file, upright, as RGB.

  Transparency is dropped, as torchvision does; 16 bits become 8.

  Args:
    data: content of the file.
    image: of `open_image`.
    factor: 1, 2, 4 or 8: a JPEG is decoded at this part of its size, which is quicker;
      other formats are not.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ImageError: it is truncated or damaged.
  """
  # Without its end marker a file is truncated, or ends in something else: OpenCV would
  # fill up with grey, Pillow knows.
  whole = data.endswith(b"\xff\xd9")
  if image.format == "JPEG" and image.mode in ("RGB", "L") and whole:
    flags = cv2.IMREAD_COLOR_RGB | _REDUCED[factor]
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is not None:
      return pixels
  return _decode_slowly(image)


def _decode_slowly(image: Image.Image) -> np.ndarray:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      image = ImageOps.exif_transpose(image)
      if image.mode.startswith("I"):  # 16 bits; Pillow would clip what is above 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      return np.asarray(image.convert("RGB"))
  except Exception as error:  # Pillow raises all kinds.
    raise ImageError(f"it is truncated or damaged ({error})") from error
