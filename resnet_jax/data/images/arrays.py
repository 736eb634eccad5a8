"""Reads arrays of NumPy, .npy and .npz files, from anyone: nothing is unpickled."""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.pixels import Head, Stored, check_shape, mode_of

_LONGEST_HEADER = 10_000  # Bytes; an ordinary one has 118.
# Others expand a few bytes to any number, and NumPy does not write them.
_METHODS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
# Names of the image in an .npz file with several arrays.
_NAMES = ("image.npy", "arr_0.npy")
_File = io.BytesIO | zipfile.ZipExtFile
_TOPS = {"bool": 1, "uint8": 255, "uint16": 65535}


def open_array(data: bytes) -> Head:
  """Reads the header of an .npy or .npz file.

  Raises:
    ImageError: the file is damaged, or has no array of numbers [H, W] or [H, W, C].
  """
  with _opened(data) as (file, kind):
    (height, width, channels), _, dtype, _ = _read_header(file)
  size = channels * dtype.itemsize
  return Head(kind, mode_of(dtype, channels), (width, height), 1, pixel_bytes=size)


def read_array(data: bytes) -> Stored:
  """Returns the array of an .npy or .npz file; the caller has checked its size.

  Raises:
    ImageError: as for `open_array`.
  """
  with _opened(data) as (file, _):
    shape, is_fortran, dtype, content = _read_header(file)
    size = math.prod(shape) * dtype.itemsize
    # At most one byte more than expected is decompressed, whatever the file holds.
    content += file.read(max(0, size + 1 - len(content)))
  if len(content) != size:
    raise ImageError(f"it is truncated or damaged: {size} bytes of values expected")
  values = np.frombuffer(content, dtype)
  if is_fortran:
    values = values.reshape(shape[::-1]).transpose()
  values = values.reshape(shape).astype(dtype.newbyteorder("="), copy=False)
  return Stored(values, _TOPS.get(values.dtype.name, 0))


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[tuple[_File, str]]:
  """Opens the array within the content of a file: (file, "NPY" or "NPZ")."""
  try:
    if data.startswith(b"PK"):
      yield _open_member(data), "NPZ"
    else:
      yield io.BytesIO(data), "NPY"
  except ImageError:
    raise
  except Exception as error:  # zipfile raises errors of many types.
    raise ImageError(f"it is truncated or damaged ({error!s:.100})") from error


def _open_member(data: bytes) -> _File:
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    known = [name for name in _NAMES if name in names]
    if not known and len(names) != 1:
      raise ImageError(
        f"it has {len(names)} arrays; give it one, or name one of them 'image'"
      )
    name = (known or names)[0]
    if archive.getinfo(name).compress_type not in _METHODS:
      raise ImageError("its compression is not deflate; write it with np.savez")
    member = archive.open(name)
    assert isinstance(member, zipfile.ZipExtFile)
    return member


def _read_header(
  file: _File,
) -> tuple[tuple[int, int, int], bool, np.dtype[Any], bytes]:
  """Returns the shape, whether the order is Fortran's, the dtype, and the first values.

  The shape is [H, W, C]. The bytes of the first values are those that were read too.
  """
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  try:
    # A header may state that it is 4 GB long, which NumPy would read.
    start = io.BytesIO(file.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    shape, is_fortran, dtype = readers[version](start, max_header_size=_LONGEST_HEADER)
  except Exception as error:  # NumPy raises errors of many types.
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    raise ImageError(f"its header is damaged ({reason:.100})") from error
  if dtype.kind not in "buif" or dtype.itemsize > 8:
    raise ImageError(f"its array is {dtype}, which is no image; give it numbers")
  if len(shape) not in (2, 3):
    raise ImageError(
      f"its array is {[*shape]}; an image is [height, width] or [height, width, "
      "channels]"
    )
  height, width, channels = (*shape, 1)[:3]
  check_shape((width, height), channels)
  return (height, width, channels), is_fortran, dtype, start.read()
