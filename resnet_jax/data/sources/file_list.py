"""The image files of one split, and how folders are listed."""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnet_jax.data.images.errors import ImageError
from resnet_jax.runtime.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


_MAX_CLASSES = 100_000


# Of images whose layout has no splits.
_PARTS = ["train", "val"]


class FileList:
  """The files of one split: [i] is (content, label).

  Attributes:
    labels: [N] int32 in [0, len(class_names)).
    class_names: of every label.
  """

  def __init__(
    self,
    root: str | Path,
    paths: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
  ):
    """Takes paths relative to `root`, in the order of `labels`."""
    self.labels = np.array(labels, np.int32)
    self.class_names = tuple(class_names)
    self._root = str(root)
    # A million names in one piece: small, and quick to send to worker processes.
    encoded = [os.fsencode(path) for path in paths]
    self._names = b"".join(encoded)
    self._ends = np.cumsum([0, *map(len, encoded)])

  def __len__(self) -> int:
    return len(self.labels)

  def name(self, index: int) -> str:
    """Returns the path of file `index`."""
    return os.path.join(self._root, self._relative(index))

  def _relative(self, index: int | np.integer) -> str:
    start, end = self._ends[index : index + 2].tolist()
    return os.fsdecode(self._names[start:end])

  def select(self, chosen: Sequence[bool] | np.ndarray) -> "FileList":
    """Returns the files whose place in `chosen`, [N] bool, is true."""
    index = np.flatnonzero(chosen)
    paths = [self._relative(i) for i in index]
    return FileList(self._root, paths, self.labels[index], self.class_names)

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    """Reads a file; raises `ImageError` if it cannot."""
    path = self.name(index)
    try:
      return _read(path), int(self.labels[index])
    except OSError as error:
      if not os.path.isfile(path):
        kind = "a dangling link" if os.path.islink(path) else "no file"
        raise ImageError(f"it is {kind}") from None
      raise ImageError(f"it cannot be read ({error.strerror})") from error


def _read(path: str) -> bytes:
  """Reads a file with as few system calls as it takes, and never waits for a pipe."""
  if "\0" in path:
    raise FileNotFoundError
  flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
  file = os.open(path, flags)
  try:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
      raise FileNotFoundError
    data = os.read(file, status.st_size + 1)
  finally:
    os.close(file)
  if len(data) != status.st_size:
    raise OSError(errno.EIO, f"{len(data)} bytes came of {status.st_size}")
  return data


def _classes(folder: Path) -> list[str]:
  found = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and not entry.name.startswith(".")
  )
  if not found:
    raise UserError(f"{str(folder)!r} must have a folder of images for each class")
  return found


def images_below(folder: Path) -> list[str]:
  """Returns paths relative to the folder's parent, whether readable or not.

  They are in torchvision's order: all of a folder, then those below it.
  """
  found = []
  # Links to folders are not followed: one may hold itself.
  for place, _, names in sorted(os.walk(folder, onerror=_raise)):
    below = os.path.relpath(place, folder.parent)
    if "/." in below:
      continue
    found += [
      f"{below}/{name}"
      for name in sorted(names)
      if not name.startswith(".") and name.lower().endswith(SUFFIXES)
    ]
  return found


def _raise(error: OSError) -> None:
  raise error


def _list_folder(folder: Path, classes: Sequence[str]) -> FileList:
  _check_known(_classes(folder), classes, folder)
  paths, labels = [], []
  for label, name in enumerate(classes):
    if (folder / name).is_dir():
      found = images_below(folder / name)
      if not found:
        raise UserError(
          f"{str(folder / name)!r} has no images ({' '.join(SUFFIXES)}); add some or "
          "remove the folder"
        )
      paths += found
      labels += [label] * len(found)
  return FileList(folder, paths, labels, classes)


def _check_known(found: Sequence[str], classes: Sequence[str], where: Path) -> None:
  unknown = sorted(set(found) - set(classes))
  if unknown:
    raise UserError(
      f"{str(where)!r} has classes that training has not: {', '.join(unknown[:5])}"
    )


def _read_lines(path: Path) -> list[str]:
  """Returns the lines of a text file that are not blank."""
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  return [line for line in lines if line.strip()]
