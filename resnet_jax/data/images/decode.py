"""From the content of an image file to pixels, quickly, or to one clear error.

libjpeg-turbo decodes parts of ordinary JPEG files, OpenCV whole ones: they are the
fastest that were measured (benchmarks/NOTES.md), and let other threads work meanwhile.
Pillow has the rest.
"""

import io
import struct
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from resnet_jax.data.images import turbojpeg
from resnet_jax.data.images.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# "Grayscale" only says the size here; the flags called "color" also ask for BGR, which
# OpenCV from 4.12 on refuses beside RGB.
_REDUCED = {
  1: 0,
  2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
  4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
  8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# The loader's threads are the parallelism; OpenCV's own would only be in their way.
cv2.setNumThreads(0)
# Of large or odd files; here, as `warnings.catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Head(NamedTuple):
  """What an image file says before its pixels.

  Attributes:
    format: as Pillow names it.
    mode: likewise.
    size: (width, height) in pixels, as stored.
    orientation: what EXIF says, 1 to 8: 1 is upright, 5 and above swap the sides.
  """

  format: str
  mode: str
  size: tuple[int, int]
  orientation: int


def open_image(data: bytes, max_pixels: int) -> Head:
  """Reads the head of an image file.

  Args:
    data: content of a JPEG, PNG, WebP, GIF or BMP file, whatever its name.
    max_pixels: largest width times height, which bounds the memory of decoding.

  Raises:
    ImageError: it is no such image, or larger.
  """
  head = _read_jpeg_head(data)
  if head is None:
    image = _open_by_pillow(data)
    orientation = _orientation(image.info.get("exif", b""))
    head = Head(image.format or "", image.mode, image.size, orientation)
  width, height = head.size
  if width * height > max_pixels:
    raise ImageError(f"it has {width}x{height} pixels, more than {max_pixels}")
  return head


def _read_jpeg_head(data: bytes) -> Head | None:
  """Does in a tenth of the time what Pillow does for an ordinary JPEG."""
  if not data.startswith(b"\xff\xd8\xff"):
    return None
  at, frame, exif = 2, None, b""
  # A marker, its length in 2 bytes, its body.
  while at + 10 <= len(data) and data[at] == 0xFF:
    marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
    body = data[at + 4 : at + 10]
    if marker == 0xDA:  # The pixels.
      return frame and Head("JPEG", *frame, _orientation(exif))
    if marker in (0xC0, 0xC1, 0xC2):
      precision, height, width, channels = struct.unpack(">BHHB", body)
      mode = {1: "L", 3: "RGB"}.get(channels)
      if frame or mode is None or precision != 8 or not width * height:
        return None
      frame = mode, (width, height)
    elif body.startswith(b"MPF") or (exif and body.startswith(b"Exif")):
      return None  # Several pictures, or several parts of EXIF.
    elif body.startswith(b"Exif"):
      exif = data[at + 4 : at + 2 + length]
    at += 2 + length
  return None


def _open_by_pillow(data: bytes) -> Image.Image:
  if not data:
    raise ImageError("it is empty")
  try:
    return Image.open(io.BytesIO(data), formats=FORMATS)
  except Image.DecompressionBombError:  # Above twice its limit, before any of ours.
    pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    raise ImageError(f"it has more than {pixels} pixels") from None
  except Exception as error:  # Pillow raises all kinds.
    kind = "HEIF" if data[4:8] == b"ftyp" else f"content begins with {data[:8]!r}"
    raise ImageError(f"it is none of {', '.join(FORMATS)} ({kind})") from error


def _orientation(exif: bytes) -> int:
  if not exif:
    return 1
  tags = Image.Exif()
  try:
    tags.load(exif)
    value = tags.get(0x0112, 1)
  except Exception:  # Pillow raises all kinds; damaged EXIF says nothing.
    return 1
  return value if value in range(1, 9) else 1


def upright_size(head: Head) -> tuple[int, int]:
  """Returns (width, height) after the rotation that EXIF asks for."""
  return head.size[::-1] if head.orientation >= 5 else head.size


def decode(data: bytes, head: Head, factor: int = 1) -> np.ndarray:
  """Decodes the first picture of an image file, upright, as RGB.

  Transparency is dropped, as torchvision does; 16 bits become 8.

  Args:
    data: content of the file.
    head: of `open_image`.
    factor: 1, 2, 4 or 8: a JPEG is decoded at this part of its size, which is quicker;
      other formats are not.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ImageError: it is truncated or damaged.
  """
  pixels = None
  if _is_ordinary(data, head):
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED[factor]
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  if pixels is None:
    pixels = _decode_by_pillow(data)
  if head.orientation >= 5:
    pixels = pixels.swapaxes(0, 1)
  if head.orientation in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if head.orientation in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return np.ascontiguousarray(pixels)


def decode_part(
  data: bytes, head: Head, box: tuple[int, int, int, int], factor: int
) -> np.ndarray:
  """Decodes a part of an image as `decode` does, sooner and a little less exactly.

  Args:
    data: see `decode`.
    head: likewise.
    box: left, top, width and height, in pixels of the upright image.
    factor: see `decode`.

  Returns:
    [height / factor, width / factor, 3] uint8, rounded down; of a format that is
    decoded at full size only, [height, width, 3].

  Raises:
    ImageError: see `decode`.
  """
  x, y, width, height = (n // factor for n in box)
  if _is_ordinary(data, head) and head.orientation == 1:
    pixels = turbojpeg.decode_part(data, x, y, width, height, factor)
    if pixels is not None:
      return pixels
  pixels = decode(data, head, factor)
  if pixels.shape[1] == upright_size(head)[0]:
    x, y, width, height = box
  return pixels[y : y + height, x : x + width]


def _is_ordinary(data: bytes, head: Head) -> bool:
  """Whether the fast decoders may be trusted with a file."""
  # Without its end marker a JPEG is truncated, or ends in something else: they would
  # fill up with grey, Pillow knows.
  whole = data.endswith(b"\xff\xd9")
  return head.format == "JPEG" and head.mode in ("RGB", "L") and whole


def _decode_by_pillow(data: bytes) -> np.ndarray:
  image = _open_by_pillow(data)
  try:
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip what is above 255.
      return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
  except Exception as error:  # Pillow raises all kinds.
    raise ImageError(f"it is truncated or damaged ({error})") from error
