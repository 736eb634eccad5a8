"""Paths for Orbax that never read a directory's name as a glob pattern."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from etils import epath

from resnet_jax.runtime.buckets import is_remote, storage_path


class LiteralPath(type(epath.Path())):  # type: ignore[misc]
  """A local path whose `glob` reads only its argument as a pattern.

  Etils reads the whole path as a pattern. Orbax would then not find the files that it
  has just written to `run[1]`, and would save an unreadable checkpoint.
  """

  def glob(self, pattern: str) -> Iterator[Self]:
    """Yields the paths in this directory that match a pattern."""
    return (self / name for name in glob.glob(pattern, root_dir=self))


def literal_path(path: str | Path) -> epath.Path:
  """Returns a path for Orbax; a local one becomes absolute."""
  # Etils' `resolve` would turn a remote path into a local one.
  return storage_path(path) if is_remote(path) else LiteralPath(path).resolve()
