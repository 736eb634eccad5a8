"""The formats of image files, and the packages that some of them need."""

import importlib.util
import re
from typing import NamedTuple

from PIL import features


class Format(NamedTuple):
  """How to recognise the files of a format.

  Attributes:
    beginning: regular expression of the first bytes.
    suffixes: suffixes of the file names, in lower case.
    package: missing package that reads the format; "" if none is missing.
    by_pillow: whether Pillow reads the format.
  """

  beginning: bytes
  suffixes: tuple[str, ...]
  package: str = ""
  by_pillow: bool = True


_HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
# Older versions of Pillow do not know "avif" and would warn.
_HAS_AVIF = "avif" in features.modules and bool(features.check("avif"))
KNOWN = {
  "JPEG": Format(rb"\xff\xd8", (".jpg", ".jpeg", ".jpe", ".jfif")),
  "PNG": Format(rb"\x89PNG", (".png",)),
  "WEBP": Format(rb"(?s)RIFF....WEBP", (".webp",)),
  "GIF": Format(rb"GIF8", (".gif",)),
  "BMP": Format(rb"BM", (".bmp",)),
  "HEIF": Format(
    rb"(?s)....ftyp(hei|hev|mif1|msf1)",
    (".heic", ".heif", ".hif"),
    "" if _HAS_HEIF else "pillow-heif",
  ),
  "AVIF": Format(
    rb"(?s)....ftypavi[fs]", (".avif",), "" if _HAS_AVIF else "'pillow>=11.3'"
  ),
  "TIFF": Format(rb"II[*+]\0|MM\0[*+]", (".tif", ".tiff"), by_pillow=False),
  "NPY": Format(rb"\x93NUMPY", (".npy",), by_pillow=False),
  "NPZ": Format(rb"PK\x03\x04", (".npz",), by_pillow=False),
  # Last, because its first 128 bytes can be those of any other format.
  "DICOM": Format(
    rb"(?s).{128}DICM",
    (".dcm", ".dicom"),
    "" if importlib.util.find_spec("pydicom") else "'flax-resnet[dicom]'",
    by_pillow=False,
  ),
}
# The formats that can be read, and those of them that Pillow reads, by its names.
READABLE = tuple(name for name, known in KNOWN.items() if not known.package)
READ = tuple(name for name in READABLE if KNOWN[name].by_pillow)
SUFFIXES = tuple(suffix for name in READABLE for suffix in KNOWN[name].suffixes)


def format_of(data: bytes) -> str:
  """Returns the key of `KNOWN` for the content of a file; "" if it is none of them."""
  beginnings = ((name, known.beginning) for name, known in KNOWN.items())
  return next((name for name, begin in beginnings if re.match(begin, data)), "")


def needed_package(suffix: str) -> str:
  """Returns the missing package that reads files of a suffix; "" if none is missing."""
  packages = (known.package for known in KNOWN.values() if suffix in known.suffixes)
  return next(packages, "")
