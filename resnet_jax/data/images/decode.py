"""Decodes image files quickly, or raises one clear error.

libjpeg-turbo decodes parts of ordinary JPEG files, and OpenCV decodes whole ones. They
were the fastest in measurements (benchmarks/NOTES.md), and other threads can run
meanwhile. `tiff.py`, `arrays.py` and `dicom.py` read the formats of their names, and
Pillow all other files.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from resnet_jax.data.images import arrays, dicom, tiff, turbojpeg
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.exif import exif_of, orientation_of, turn_upright
from resnet_jax.data.images.formats import KNOWN, READ, READABLE, format_of
from resnet_jax.data.images.pixels import (
  RGB8,
  Head,
  PixelFormat,
  Stored,
  to_pixels,
)
from resnet_jax.data.images.turbojpeg import MAX_SCANS

# The "GRAYSCALE" flags only set the size here. The "COLOR" flags also ask for BGR, and
# OpenCV 4.12 and later refuse BGR together with RGB.
_REDUCED = {
  1: 0,
  2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
  4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
  8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# JPEG segments that may come before the pixels: tables, comments and application data.
# Each of them states its length, so every decoder skips it correctly.
_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
# Start of a JPEG scan; its length is 6 + 2 * channels. The marker alone also occurs in
# videos that phones append to a picture.
_SCAN = re.compile(rb"\xff\xda\x00[\x06-\x0e]")
# Largest number of scans in a JPEG of `max_pixels` pixels. A smaller JPEG may have
# more, up to `MAX_SCANS`.
_LARGEST_SCANS = 12
_PIXEL_BYTES = 8  # For each of `max_pixels` pixels.
_EXIF = b"Exif\0\0"  # Start of a segment with EXIF data.
# Most such segments in a JPEG; an ordinary file has one. For each of them, Pillow
# copies all earlier ones.
_MOST_EXIF = 100

# The loader's threads already run in parallel; OpenCV's own would only disturb them.
cv2.setNumThreads(0)
# Pillow warns of large or odd files. This is global, because `warnings.catch_warnings`
# is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")
if "HEIF" in READ:
  import pillow_heif

  pillow_heif.register_heif_opener(
    decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
  )
if "AVIF" in READ:
  from PIL import AvifImagePlugin

  AvifImagePlugin.DEFAULT_MAX_THREADS = 1


class _Reader(NamedTuple):
  """Reads the header and the content of files of one format."""

  open: Callable[[bytes], Head]
  read: Callable[[bytes], Stored]


_READERS = {
  "TIFF": _Reader(tiff.open_tiff, tiff.read_tiff),
  "NPY": _Reader(arrays.open_array, arrays.read_array),
  "NPZ": _Reader(arrays.open_array, arrays.read_array),
  "DICOM": _Reader(dicom.open_dicom, dicom.read_dicom),
}


def open_image(data: bytes, max_pixels: int) -> Head:
  """Reads the header of an image file.

  Args:
    data: content of a file of one of the formats in `READABLE`, whatever its name.
    max_pixels: largest width times height. The values may take 8 bytes for each of
      these pixels, as RGBA of 16 bits does. This bounds the memory of decoding.

  Raises:
    ImageError: the file has none of these formats, is damaged, has too many pixels, or
      is a JPEG with too many scans or EXIF segments.
  """
  head = _read_jpeg_head(data, max_pixels)
  kind = "" if head else format_of(data)
  if kind in _READERS and kind in READABLE:
    head = _READERS[kind].open(data)
  elif head is None or not head.format:
    image = _open_by_pillow(data)
    orientation = orientation_of(exif_of(image))
    plain = head is not None and head.plain and image.format == "JPEG"
    head = Head(image.format or "", image.mode, image.size, orientation, plain)
    if head.format in ("JPEG", "MPO"):
      _check_scans(data, head.size, max_pixels)
  width, height = head.size
  if width * height > max_pixels:
    raise ImageError(f"it has {width}x{height} pixels, more than {max_pixels}")
  size = width * height * head.pixel_bytes
  if size > _PIXEL_BYTES * max_pixels:
    raise ImageError(
      f"its {width}x{height} pixels take {size:,} bytes, more than {_PIXEL_BYTES} for "
      f"each of {max_pixels} pixels; store fewer channels, or smaller numbers"
    )
  return head


def _read_jpeg_head(data: bytes, max_pixels: int) -> Head | None:
  """Reads the header of an ordinary JPEG in a tenth of the time that Pillow takes.

  Pillow reads files that have markers without a length, or bytes between the segments.
  Two decoders may skip these in different ways, and then see different sizes.

  Returns:
    The header, or None. Its format is "" if Pillow must tell JPEG from MPO.
  """
  if not data.startswith(b"\xff\xd8\xff"):
    return None
  kind, frame, exif, channels, progressive = "JPEG", None, b"", 0, False
  at, exif_count = 2, 0
  # Each segment has a marker, its length in 2 bytes, and its body.
  while at + 10 <= len(data) and data[at] == 0xFF:
    marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
    body, end = data[at + 4 : at + 10], at + 2 + length
    if length < 2 or end > len(data):
      return None
    if marker == 0xDA:  # The pixels.
      # If the first scan has all channels at full detail, it is the only one.
      if frame and (progressive or body[0] != channels):
        _check_scans(data, frame[1], max_pixels)
      # A JPEG without its end marker is truncated, or other data follows it. The fast
      # decoders would fill the rest with grey; Pillow can tell the two cases apart.
      whole = data.endswith(b"\xff\xd9")
      return frame and Head(kind, *frame, orientation_of(exif), whole)
    if marker in (0xC0, 0xC1, 0xC2):
      precision, height, width, channels = struct.unpack(">BHHB", body)
      mode = {1: "L", 3: "RGB"}.get(channels)
      if frame or mode is None or precision != 8 or not width * height:
        return None
      frame, progressive = (mode, (width, height)), marker == 0xC2
    elif marker not in _SEGMENTS:
      return None
    elif body.startswith(b"MPF\0"):
      kind = ""
    elif marker == 0xE1 and body == _EXIF:
      exif_count += 1
      _check_exif(exif_count)
      exif = exif + data[at + 10 : end] if exif else data[at + 4 : end]
    at = end
  return None


def _check_scans(data: bytes, size: tuple[int, int], max_pixels: int) -> None:
  """Refuses a JPEG that would take too long: each scan passes over the whole image."""
  scans, pixels = len(_SCAN.findall(data)), max(1, size[0] * size[1])
  # An image of more than `max_pixels` is refused for its size instead.
  most = min(MAX_SCANS, _LARGEST_SCANS * max(max_pixels, pixels) // pixels)
  if scans > most:
    where = f" of {size[0]}x{size[1]} pixels" if most < MAX_SCANS else ""
    raise ImageError(f"it has {scans} scans{where}, more than {most}")


def _check_exif(count: int) -> None:
  if count > _MOST_EXIF:
    raise ImageError(f"it has more than {_MOST_EXIF} segments of EXIF data")


def _open_by_pillow(data: bytes) -> Image.Image:
  if not data:
    raise ImageError("it is empty")
  if re.match(KNOWN["JPEG"].beginning, data):
    _check_exif(data.count(_EXIF))
  try:
    return Image.open(io.BytesIO(data), formats=READ)
  except Image.DecompressionBombError:  # Pillow checks twice its own limit first.
    pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    raise ImageError(f"it has more than {pixels} pixels") from None
  except Exception as error:  # Pillow raises errors of many types.
    if known := KNOWN.get(name := format_of(data)):
      if known.package:
        raise ImageError(
          f"it is {name} ({' '.join(known.suffixes)}), which "
          f"`pip install {known.package}` makes readable"
        ) from error
      raise ImageError(
        f"it is a {name} that is truncated or damaged, or of an unsupported kind"
      ) from error
    raise ImageError(
      f"it is none of {', '.join(READABLE)} (content begins with {data[:8]!r})"
    ) from error


def upright_size(head: Head) -> tuple[int, int]:
  """Returns (width, height) after the rotation that EXIF asks for."""
  return head.size[::-1] if head.orientation >= 5 else head.size


def decode(
  data: bytes, head: Head, factor: int = 1, pixels: PixelFormat = RGB8
) -> np.ndarray:
  """Decodes the first picture of an image file, upright.

  Args:
    data: content of the file.
    head: from `open_image`.
    factor: 1, 2, 4 or 8. A JPEG is decoded at 1 / `factor` of its size, which is
      faster; other formats are decoded at full size.
    pixels: the pixels to return, see `to_pixels`.

  Returns:
    [H, W, C] of `pixels.dtype`.

  Raises:
    ImageError: the image is truncated or damaged, its size differs from its header, or
      its values do not fit `pixels`.
  """
  return np.ascontiguousarray(to_pixels(read_stored(data, head, factor), pixels))


def read_stored(data: bytes, head: Head, factor: int = 1) -> Stored:
  """Returns the values of the first picture of an image file, upright; see `decode`."""
  stored = None
  if _is_plain(data, head):
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED[factor]
    values = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    stored = None if values is None else Stored(values)
  if stored is None:
    reader = _READERS.get(head.format)
    stored = reader.read(data) if reader else _read_by_pillow(data, head)
    factor = 1
  values = stored.values
  _check_size(head, (values.shape[1], values.shape[0]), factor)
  return stored._replace(values=turn_upright(values, head.orientation))


def decode_part(
  data: bytes,
  head: Head,
  box: tuple[int, int, int, int],
  factor: int,
  pixels: PixelFormat = RGB8,
) -> np.ndarray:
  """Decodes a part of an image like `decode`, but faster and a little less exactly.

  Args:
    data: see `decode`.
    head: see `decode`.
    box: left, top, width and height, in pixels of the upright image.
    factor: see `decode`.
    pixels: see `decode`.

  Returns:
    [height / factor, width / factor, C] of `pixels.dtype`, sides rounded down; [height,
    width, C] for formats that are decoded at full size only.

  Raises:
    ImageError: see `decode`.
  """
  x, y, width, height = (n // factor for n in box)
  if head.orientation == 1 and _is_plain(data, head):
    part = turbojpeg.decode_part(data, x, y, width, height, factor)
    if part is not None:
      return to_pixels(Stored(part), pixels)
  whole = decode(data, head, factor, pixels)
  if whole.shape[1::-1] == upright_size(head):
    x, y, width, height = box
  return whole[y : y + height, x : x + width]


def _is_plain(data: bytes, head: Head) -> bool:
  """Whether the fast decoders decode a file correctly.

  Raises:
    ImageError: they would decode another size than the header says.
  """
  if head.plain:
    _check_size(head, turbojpeg.read_size(data) or head.size)
  return head.plain


def _check_size(head: Head, size: tuple[int, int], factor: int = 1) -> None:
  width, height = (-(-pixels // factor) for pixels in head.size)
  if size != (width, height):
    found = "x".join(map(str, size))
    raise ImageError(f"its head says {width}x{height} pixels, its decoder says {found}")


def _read_by_pillow(data: bytes, head: Head) -> Stored:
  image = _open_by_pillow(data)
  _check_size(head, image.size)
  try:
    if image.mode.startswith("I"):  # 16 bits of grey.
      return Stored(np.asarray(image).astype(np.uint16)[..., None], 65535)
    stored = tiff.of_mode(image)
  except Exception as error:  # Pillow raises errors of many types.
    raise ImageError(f"it is truncated or damaged ({error})") from error
  return _read_deep(data, stored) if has_16_bits(data, head) else stored


def _read_deep(data: bytes, shallow: Stored) -> Stored:
  """Reads a PNG of 16 bits a channel, of which Pillow reads only the upper 8 bits.

  OpenCV reads all of them. It does not see that a file is truncated, but Pillow does.
  """
  values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if values is None or values.dtype != np.uint16 or values.ndim != 3:
    raise ImageError("its 16 bits cannot be decoded")
  values = values[..., [2, 1, 0, 3][: values.shape[2]]]  # From BGR.
  channels = shallow.values.shape[2]
  if shallow.has_alpha:
    grey_and_alpha = [0, 3]
    return Stored(values if channels == 4 else values[..., grey_and_alpha], 65535, True)
  return Stored(values[..., :channels], 65535)


def has_16_bits(data: bytes, head: Head) -> bool:
  """Whether a file is a PNG with 16 bits per channel."""
  start = struct.pack(">IIB", *head.size, 16)
  return head.format == "PNG" and data[16:25] == start
