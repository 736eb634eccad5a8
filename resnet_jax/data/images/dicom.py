"""Reads DICOM files: the first frame, with `pydicom`.

The values are those after the modality transformation (rescale slope and intercept),
as MONAI and ITK read them: Hounsfield units for CT. Windows (VOI LUT) are not applied,
because they are a choice of the viewer, and differ between the images of a set.
MONOCHROME1, whose 0 is white, is inverted, so that 0 is black in all images.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.pixels import Head, Stored, check_shape, mode_of

_GREY, _INVERTED = "MONOCHROME2", "MONOCHROME1"
# The whole file is compressed; its size is not known before it is read.
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def open_dicom(data: bytes) -> Head:
  """Reads the header.

  Raises:
    ImageError: the file is damaged or has no image of a supported kind.
  """
  with _damage():
    dataset = _read(data, stop_before_pixels=True)
    size, channels = _shape(dataset)
    signed = "" if dataset.get("PixelRepresentation", 0) else "u"
    dtype = np.dtype(f"{signed}int{dataset.BitsAllocated}")
    pixel_bytes = channels * dtype.itemsize
    return Head("DICOM", mode_of(dtype, channels), size, 1, pixel_bytes=pixel_bytes)


def read_dicom(data: bytes) -> Stored:
  """Returns the first frame; the caller has checked its size.

  The value that counts as 1 is the highest one of "Bits Stored", such as 4095. It is
  unknown if the values are signed or rescaled.

  Raises:
    ImageError: see `open_dicom`.
  """
  from pydicom.pixels.processing import apply_modality_lut
  from pydicom.pixels.utils import pixel_array

  with _damage():
    dataset = _read(data, stop_before_pixels=False)
    (width, height), channels = _shape(dataset)
    values, top = pixel_array(dataset, index=0), 0  # It converts YBR to RGB.
    if values.size != height * width * channels:
      raise ImageError(f"its head says {height}x{width}x{channels}, not {values.shape}")
    bits = int(dataset.BitsStored)
    if _is_rescaled(dataset):
      values = apply_modality_lut(values, dataset)
    elif values.dtype.kind == "u" and 1 <= bits <= 16:
      top = 2**bits - 1
      if (highest := int(values.max())) > top:
        raise ImageError(f"its value {highest} does not fit its {bits} bits")
    if dataset.PhotometricInterpretation == _INVERTED:
      if not top:
        raise ImageError("its white is 0, and its values are signed or rescaled")
      values = top - values
    return Stored(values.reshape(height, width, channels), top)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
  try:
    yield
  except ImageError:
    raise
  except Exception as error:  # pydicom raises errors of many types.
    raise ImageError(f"it is damaged or not supported ({error!s:.200})") from error


def _is_rescaled(dataset: Any) -> bool:
  slope, offset = (dataset.get(f"Rescale{x}") for x in ("Slope", "Intercept"))
  is_linear = slope in (None, 1) and offset in (None, 0)
  return "ModalityLUTSequence" in dataset or not is_linear


def _read(data: bytes, *, stop_before_pixels: bool) -> Any:
  import pydicom

  if _DEFLATED in data:
    raise ImageError("it is a deflated DICOM file; store it without deflate")
  return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels)


def _shape(dataset: Any) -> tuple[tuple[int, int], int]:
  """Returns ((width, height), channels); raises an error if they are no image's."""
  if "Rows" not in dataset:
    raise ImageError("it has no image")
  size = int(dataset.Columns), int(dataset.Rows)
  channels = int(dataset.get("SamplesPerPixel", 1))
  kind, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsAllocated)
  check_shape(size, channels)
  known = (_GREY, _INVERTED) if channels == 1 else ("RGB", "YBR")
  if bits not in (8, 16, 32) or not kind.startswith(known):
    raise ImageError(f"its pixels are of an unsupported kind: {kind} of {bits} bits")
  return size, channels
