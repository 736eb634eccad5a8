"""Decodes only the requested part of a JPEG, through libjpeg-turbo's C interface.

Python packages decode whole JPEG images only, which takes a third more time
(benchmarks/NOTES.md). The functions and constants are those of `turbojpeg.h` since
version 3.0.
"""

import ctypes
import ctypes.util
import functools
import os
import threading

import numpy as np

# Largest number of scans in a JPEG. Each scan passes over the whole image; an ordinary
# file has at most about 10.
MAX_SCANS = 100

_DECOMPRESS = 1  # TJINIT_DECOMPRESS
_SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLORSPACE = 4, 5, 6, 7, 8  # TJPARAM_...
_SCAN_LIMIT = 13  # TJPARAM_SCANLIMIT
_RGB = 0  # TJPF_RGB
# TJCS_RGB, TJCS_YCbCr, TJCS_GRAY; not CMYK, YCCK.
_COLORSPACES = (0, 1, 2)
# Widths of a block in pixels, in the order of TJSAMP: 444, 422, 420, GRAY, 440, 411,
# 441. The left side of a decoded part must be a multiple of the width.
_BLOCK_WIDTHS = (8, 16, 16, 8, 8, 32, 8)


class _Region(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Factor(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ("num", "denom")]


class _Library:
  """Version 3 of libjpeg-turbo on this system.

  Raises:
    OSError: the library cannot be loaded from `name`.
    AttributeError: it is version 2.
  """

  def __init__(self, name: str):
    self.name = name
    # Only decoding releases the interpreter lock. The other functions take
    # microseconds; to wait for the lock after them would take longer.
    short = ctypes.PyDLL(name)
    handle, data = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_size_t)
    self.init = short.tj3Init
    self.init.restype = handle
    self.destroy = short.tj3Destroy
    self.destroy.argtypes = (handle,)
    self.read_header = short.tj3DecompressHeader
    self.read_header.argtypes = (handle, *data)
    self.get = short.tj3Get
    self.get.argtypes = (handle, ctypes.c_int)
    self.set = short.tj3Set
    self.set.argtypes = (handle, ctypes.c_int, ctypes.c_int)
    self.set_factor = short.tj3SetScalingFactor
    self.set_factor.argtypes = (handle, _Factor)
    self.set_region = short.tj3SetCroppingRegion
    self.set_region.argtypes = (handle, _Region)
    self.decode = ctypes.CDLL(name).tj3Decompress8
    self.decode.argtypes = (handle, *data, handle, ctypes.c_int, ctypes.c_int)


@functools.cache
def _library() -> tuple[_Library | None, str]:
  """Returns the library, or None and the reason; $TURBOJPEG may name its file."""
  name = os.environ.get("TURBOJPEG") or ctypes.util.find_library("turbojpeg")
  if name is None:
    return None, "libturbojpeg is not installed"
  try:
    return _Library(name), ""
  except OSError as error:
    return None, f"{name} cannot be loaded: {error}"
  except AttributeError:
    return None, f"{name} is older than version 3"


def why_not() -> str:
  """Returns why the library cannot be used; "" if it can."""
  return _library()[1]


def library_name() -> str:
  """Returns the path or system name of the library's file; "" if it is unusable."""
  library, _ = _library()
  return library.name if library else ""


class _Decoder(threading.local):
  """One handle of the library per thread, kept until the process ends."""

  def __init__(self) -> None:
    self.start()

  def start(self) -> None:
    library, _ = _library()
    self.handle = library.init(_DECOMPRESS) if library else None
    if library and self.handle:
      library.set(self.handle, _SCAN_LIMIT, MAX_SCANS)


_decoder = _Decoder()


def read_size(data: bytes) -> tuple[int, int] | None:
  """Returns (width, height) of a JPEG in pixels, without decoding it.

  Returns None if the library is missing or the file is damaged.
  """
  (library, _), handle = _library(), _decoder.handle
  if library is None or handle is None:
    return None
  if library.read_header(handle, data, len(data)):
    # After an error here, some versions refuse all later files.
    library.destroy(handle)
    _decoder.start()
    return None
  return library.get(handle, _WIDTH), library.get(handle, _HEIGHT)


def decode_part(
  data: bytes, x: int, y: int, width: int, height: int, factor: int
) -> np.ndarray | None:
  """Decodes a part of a JPEG.

  Args:
    data: content of the file; the EXIF rotation is ignored.
    x: left side of the part, in pixels of the image at 1 / `factor` of its size.
    y: top of the part, in the same pixels.
    width: width of the part, in the same pixels.
    height: height of the part, in the same pixels.
    factor: 1, 2, 4 or 8.

  Returns:
    [height, width, 3] uint8. None if the library is missing or cannot convert the file
    to RGB, the file is damaged, or the part is empty or not inside the image.
  """
  (library, _), handle, size = _library(), _decoder.handle, read_size(data)
  if library is None or size is None:
    return None
  # Rounded up, as the library does.
  full_width, full_height = (-(-pixels // factor) for pixels in size)
  # The library takes a height of 0 as all rows to the bottom, too many for the array.
  if not (0 <= x < x + width <= full_width and 0 <= y < y + height <= full_height):
    return None
  get = functools.partial(library.get, handle)
  subsampling = get(_SUBSAMPLING)
  if (
    get(_COLORSPACE) not in _COLORSPACES
    or get(_PRECISION) != 8
    or not 0 <= subsampling < len(_BLOCK_WIDTHS)
  ):
    return None
  block = max(1, _BLOCK_WIDTHS[subsampling] // factor)
  # Chroma is interpolated between neighbours. With one more block on either side, the
  # pixels of the part are identical to those of the whole image.
  start = max(0, x // block - 1) * block
  end = min(full_width, x + width + block)
  region = _Region(start, y, end - start, height)
  if library.set_factor(handle, _Factor(1, factor)):
    return None
  if library.set_region(handle, region):
    return None
  pixels = np.empty((region.h, region.w, 3), np.uint8)
  address = pixels.__array_interface__["data"][0]
  if library.decode(handle, data, len(data), address, 0, _RGB):
    return None
  return pixels[:, x - start :][:, :width]
