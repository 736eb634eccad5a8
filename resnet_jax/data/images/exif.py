"""Finds the EXIF data of an image, and turns the image as they say."""

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112


def exif_of(image: Image.Image) -> bytes:
  """Returns the EXIF data of a file that Pillow opened; b"" if there are none."""
  if found := image.info.get("exif"):
    return bytes(found)
  # ImageMagick writes it into a PNG as a text: three lines, and then digits.
  lines = str(image.info.get("Raw profile type exif", "")).split("\n")[3:]
  try:
    return bytes.fromhex("".join(lines))
  except ValueError:
    return b""


def orientation_of(exif: bytes) -> int:
  """Returns the orientation, from 1 to 8; 1 is upright, also for damaged EXIF data."""
  if not exif:
    return 1
  tags = Image.Exif()
  try:
    tags.load(exif)
    value = tags.get(_ORIENTATION, 1)
  except Exception:  # Pillow raises errors of many types.
    return 1
  return value if value in range(1, 9) else 1


def turn_upright(values: np.ndarray, orientation: int) -> np.ndarray:
  """Turns and mirrors an image [H, W, ...] as an orientation from 1 to 8 asks for."""
  if orientation >= 5:
    values = values.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    values = values[::-1]
  if orientation in (2, 3, 6, 7):
    values = values[:, ::-1]
  return values
