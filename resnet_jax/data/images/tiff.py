"""Reads TIFF files: the first page, with any number of bands and bits.

Pillow reads what most files hold. It would read the wrong values, only some bands or
only the upper 8 bits of others. `tifffile` reads these, if it is installed.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.pixels import Head, Stored, check_shape, mode_of

INSTALL = "pip install 'flax-resnet[tiff]'"
# Numbers of tags, and the kinds of colours that are read: "PhotometricInterpretation".
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _SIGNS = 258, 262, 274, 277, 339
_UNSIGNED = 1  # The default of "SampleFormat".
_WHITE_IS_ZERO, _KINDS = 0, (0, 1, 2)
_ALPHA = (1, 2)  # Values of "ExtraSamples".
# Compressions whose decoders take the size of the result: none, LZW, deflate (two
# numbers), PackBits, LZMA, Zstandard.
_BOUNDED = (1, 5, 8, 32946, 32773, 34925, 50000)
_AXES = ("YX", "YXS", "SYX")
_DEEP = ("I;16", "I;16B", "I;16L")


def open_tiff(data: bytes) -> Head:
  """Reads the header of the first page.

  Raises:
    ImageError: the file is damaged or of an unsupported kind, or needs `tifffile`.
  """
  if image := _open_by_pillow(data):
    return Head("TIFF", image.mode, image.size, 1)  # Pillow turns it upright.
  with _open_page(data) as page:
    channels = _channels(page)
    size = page.imagewidth, page.imagelength
    tag = page.tags.get(_ORIENTATION)
    turn = tag.value if tag is not None and tag.value in range(1, 9) else 1
    pixel_bytes = channels * page.dtype.itemsize
    mode = mode_of(page.dtype, channels)
    return Head("TIFF", mode, size, turn, pixel_bytes=pixel_bytes)


def read_tiff(data: bytes) -> Stored:
  """Returns the first page; the caller has checked its size.

  Raises:
    ImageError: see `open_tiff`.
  """
  if image := _open_by_pillow(data):
    return _read_by_pillow(image)
  with _open_page(data) as page:
    values = page.asarray(maxworkers=1)
    if page.axes == "SYX":
      values = values.transpose(1, 2, 0)
    values = values.reshape(page.imagelength, page.imagewidth, _channels(page))
    top = 0
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
      top = 2 ** min(page.bitspersample, 8 * values.dtype.itemsize) - 1
    if page.photometric == _WHITE_IS_ZERO:
      values = _inverted(values, top)
    extra = [int(kind) for kind in page.extrasamples]
    return Stored(values, top, len(extra) == 1 and extra[0] in _ALPHA)


def _open_by_pillow(data: bytes) -> Image.Image | None:
  """Opens a file if Pillow reads all of its bands and bits."""
  try:
    image = Image.open(io.BytesIO(data), formats=("TIFF",))
  except Image.DecompressionBombError:
    pixels = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    raise ImageError(f"it has more than {pixels} pixels") from None
  except Exception:  # Pillow raises errors of many types. `tifffile` may read it.
    return None
  tags: Any = getattr(image, "tag_v2", {})
  bands, samples = len(image.getbands()), tags.get(_SAMPLES, 1)
  bits = max(tags.get(_BITS, (1,))[:bands], default=1)
  # Pillow takes signed numbers of 8 bits for unsigned ones.
  is_signed = set(tags.get(_SIGNS, ())) - {_UNSIGNED}
  if bands != samples or image.mode in ("I", "F") or is_signed:
    return None
  return image if bits <= 8 or image.mode in _DEEP else None


def _read_by_pillow(image: Image.Image) -> Stored:
  tags: Any = getattr(image, "tag_v2", {})
  try:
    if image.mode in _DEEP:
      values = np.asarray(image).astype(np.uint16, copy=False)[..., None]
      top = 2 ** min(16, tags.get(_BITS, (16,))[0]) - 1  # 16 bits or 12.
      if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = _inverted(values, top)
      return Stored(values, top)
    return of_mode(image)
  except ImageError:
    raise
  except Exception as error:  # Pillow raises errors of many types.
    raise ImageError(f"it is truncated or damaged ({error})") from error


def of_mode(image: Image.Image) -> Stored:
  """Returns the 8-bit pixels of an image of Pillow: grey or RGB, perhaps with alpha."""
  # Pillow's name for colours that are multiplied by their alpha ends in "a".
  if image.mode in ("La", "RGBa"):
    image = image.convert(image.mode.upper())
  if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
    image = image.convert("RGBA")
  if image.mode in ("LA", "RGBA"):
    return Stored(np.asarray(image), has_alpha=True)
  grey = image.mode in ("1", "L")
  values = np.asarray(image.convert("L" if grey else "RGB"))
  return Stored(values[..., None] if grey else values)


def _inverted(values: np.ndarray, top: int) -> np.ndarray:
  if not top:
    raise ImageError("its white is 0 and its type has no highest value")
  inverted: np.ndarray = (top - values.astype(np.int64)).astype(values.dtype)
  return inverted


@contextlib.contextmanager
def _open_page(data: bytes) -> Iterator[Any]:
  """Opens the first page with `tifffile`."""
  try:
    import imagecodecs  # noqa: F401 - without it, compressed data has no limit
    import tifffile
  except ModuleNotFoundError as error:
    raise ImageError(
      "it is a TIFF that Pillow cannot read: several bands, more than 8 bits of colour,"
      f" or damaged; `{INSTALL}` makes such files readable"
    ) from error
  logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # It would print details.
  try:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
      yield file.pages.first
  except ImageError:
    raise
  except Exception as error:  # tifffile raises errors of many types.
    raise ImageError(f"it is truncated or damaged ({error!s:.200})") from error


def _channels(page: Any) -> int:
  """Returns the number of channels of a page of `tifffile`.

  Raises:
    ImageError: the page is of a kind that is not read.
  """
  size, channels = (page.imagewidth, page.imagelength), page.samplesperpixel
  check_shape(size, channels)
  if page.photometric not in _KINDS or page.dtype is None or page.axes not in _AXES:
    raise ImageError(
      f"it is a TIFF of an unsupported kind: colours {page.photometric}, axes "
      f"{page.axes or 'none'}, values {page.dtype}"
    )
  if page.compression not in _BOUNDED:
    raise ImageError(
      f"its compression {page.compression} is not supported with several bands or many "
      "bits; use deflate or LZW"
    )
  if page.dtype.kind not in "uif" or page.dtype.itemsize > 8:
    raise ImageError(f"its values are {page.dtype}, which is no image")
  # A tile is decoded whole, even if most of it is outside of the image.
  rows, columns = page.tilelength or 1, page.tilewidth or 1
  if rows > 2 * size[1] + 1024 or columns > 2 * size[0] + 1024:
    raise ImageError(f"its tiles of {columns}x{rows} pixels are larger than the image")
  return int(channels)
