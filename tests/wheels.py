"""Libraries that come in wheels of Python packages."""

import contextlib
import importlib.metadata
import os


def name_libjpeg_turbo() -> None:
  """Sets $TURBOJPEG, if it is not set, to the library in the wheel `turbojpeg`."""
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    for file in importlib.metadata.files("turbojpeg") or []:
      if "libturbojpeg" in file.name:
        os.environ.setdefault("TURBOJPEG", str(file.locate()))
