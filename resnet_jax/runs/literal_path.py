"""Paths for Orbax in which no character of a directory's name is a pattern."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from etils import epath


class LiteralPath(type(epath.Path())):  # type: ignore[misc]
  """A local path whose `glob` reads only its argument as a pattern.

  Etils reads the whole path as one. With that, Orbax finds none of the files that it
  has just written to `run[1]`, and saves a checkpoint that nobody can read.
  """

  def glob(self, pattern: str) -> Iterator[Self]:
    """Yields the paths in this directory that match a pattern."""
    return (self / name for name in glob.glob(pattern, root_dir=self))


def literal_path(path: str | Path) -> epath.Path:
  """Returns a path for Orbax; a local one becomes absolute."""
  found = epath.Path(path)
  # Of a remote path, Etils' `resolve` would make a local one.
  return found if "://" in str(found) else LiteralPath(found.resolve())
