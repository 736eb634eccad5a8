"""Reads DICOM files: the first frame, with `pydicom`.

The values are those after the modality transformation (rescale slope and intercept),
as MONAI and ITK read them: Hounsfield units for CT. Windows (VOI LUT) are not applied,
because they are a choice of the viewer, and differ between the images of a set.
MONOCHROME1, whose 0 is white, is inverted, so that 0 is black in all images.
"""

import io
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
  dataset = _read(data, stop_before_pixels=True)
  size, channels = _shape(dataset)
  signed = "" if dataset.get("PixelRepresentation", 0) else "u"
  dtype = np.dtype(f"{signed}int{dataset.get('BitsAllocated', 16)}")
  return Head("DICOM", mode_of(dtype, channels), size, 1)


def read_dicom(data: bytes) -> Stored:
  """Returns the first frame; the caller has checked its size.

  The value that counts as 1 is the highest one of "Bits Stored", such as 4095; 0, which
  is unknown, if the values are signed or rescaled.

  Raises:
    ImageError: see `open_dicom`.
  """
  from pydicom.pixels import apply_modality_lut, pixel_array

  dataset = _read(data, stop_before_pixels=False)
  (width, height), channels = _shape(dataset)
  try:
    stored = pixel_array(dataset, index=0)  # Converts YBR to RGB.
    values = stored if channels > 1 else apply_modality_lut(stored, dataset)
  except Exception as error:  # pydicom raises errors of many types.
    raise ImageError(f"its pixels cannot be decoded ({error!s:.200})") from error
  if values.size != height * width * channels:
    raise ImageError(f"its head says {height}x{width}x{channels}, not {values.shape}")
  top = 0
  if not (_is_rescaled(dataset) or dataset.get("PixelRepresentation", 0)):
    values, bits = stored, int(dataset.BitsStored)
    top = 2**bits - 1 if bits <= 16 else 0
    if top and (highest := int(values.max())) > top:
      raise ImageError(f"its value {highest} does not fit its {bits} bits")
  if dataset.PhotometricInterpretation == _INVERTED:
    if not top:
      raise ImageError("its values are signed or rescaled, and its white is the lowest")
    values = (top - values.astype(np.int64)).astype(values.dtype)
  return Stored(values.reshape(height, width, channels), top)


def _is_rescaled(dataset: Any) -> bool:
  slope, offset = (dataset.get(f"Rescale{x}") for x in ("Slope", "Intercept"))
  is_linear = slope in (None, 1) and offset in (None, 0)
  return "ModalityLUTSequence" in dataset or not is_linear


def _read(data: bytes, *, stop_before_pixels: bool) -> Any:
  import pydicom

  if _DEFLATED in data[:1024]:
    raise ImageError("it is a deflated DICOM file; store it without deflate")
  try:
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels)
  except Exception as error:  # pydicom raises errors of many types.
    raise ImageError(f"it is truncated or damaged ({error!s:.200})") from error


def _shape(dataset: Any) -> tuple[tuple[int, int], int]:
  try:
    size = int(dataset.Columns), int(dataset.Rows)
    channels = int(dataset.get("SamplesPerPixel", 1))
    kind, bits = dataset.PhotometricInterpretation, int(dataset.BitsAllocated)
  except Exception as error:
    raise ImageError(f"it has no image ({error!s:.100})") from error
  check_shape(size, channels)
  if bits not in (8, 16, 32) or (
    kind not in (_GREY, _INVERTED) if channels == 1 else kind[:3] not in ("RGB", "YBR")
  ):
    raise ImageError(f"its pixels are of an unsupported kind: {kind} of {bits} bits")
  return size, channels
