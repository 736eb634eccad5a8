"""The formats of image files, and the packages that some of them need."""

import importlib.util
from typing import NamedTuple

from PIL import features


class Format(NamedTuple):
  """How to recognise the files of a format.

  Attributes:
    beginning: regular expression of the first bytes.
    suffixes: suffixes of the file names, in lower case.
    package: missing package that reads the format; "" if none is missing.
  """

  beginning: bytes
  suffixes: tuple[str, ...]
  package: str = ""


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
}
# Pillow's names of the formats that can be read.
READ = tuple(name for name, known in KNOWN.items() if not known.package)
SUFFIXES = tuple(suffix for name in READ for suffix in KNOWN[name].suffixes)


def needed_package(suffix: str) -> str:
  """Returns the missing package that reads files of a suffix; "" if none is missing."""
  packages = (known.package for known in KNOWN.values() if suffix in known.suffixes)
  return next(packages, "")
