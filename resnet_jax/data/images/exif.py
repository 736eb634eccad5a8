"""Finds the EXIF data of an image, and the orientation in them."""

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
