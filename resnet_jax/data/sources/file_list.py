"""Holds the image files of one split, and lists folders of images."""

import errno
import hashlib
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.formats import SUFFIXES, needed_package
from resnet_jax.data.labels import label_bytes
from resnet_jax.runtime.errors import UserError

# Files and folders that systems and programs create by themselves, in lower case.
_LEFT_BY_SYSTEMS = {
  *("@eadir", "__macosx", "lost+found", "found.000", "__pycache__"),
  *("#recycle", "@recycle", "$recycle.bin", "recycler", "recycled"),
  *("#snapshot", "~snapshot", "@recently-snapshot", "network trash folder"),
  *("temporary items", "thevolumesettingsfolder"),
  *("system volume information", "thumbs.db", "desktop.ini"),
}
_MAX_CLASSES = 100_000


# Images without splits of their own are divided into these.
_PARTS = ["train", "val"]


class FileList:
  """The files of one split: [i] is (content, label).

  Attributes:
    labels: of all files, see `LabelSpec`.
    class_names: names of the classes, or of the numbers of a label, in order.
    left_out: a text for each kind of ignored files and folders, such as "10 .tif" for
      ten TIFF files.
  """

  def __init__(
    self,
    root: str | Path,
    paths: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
  ):
    """Takes paths relative to `root`, in the order of `labels`."""
    is_class = not isinstance(labels, np.ndarray) or labels.dtype.kind in "iu"
    self.labels = np.array(labels, np.int32 if is_class else None)
    self.class_names = tuple(class_names)
    self.left_out: tuple[str, ...] = ()
    self._root = str(root)
    # One piece of memory holds all names. Even a million are small and quick to send to
    # worker processes.
    encoded = [os.fsencode(path) for path in paths]
    self._names = b"".join(encoded)
    self._ends = np.cumsum([0, *map(len, encoded)])

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def digest(self) -> str:
    """Hash of the paths below the root and of their labels, in order."""
    digest = hashlib.blake2b(self._names, digest_size=16)
    digest.update(self._ends.astype("<i8").tobytes())
    digest.update(label_bytes(self.labels))
    return digest.hexdigest()

  def name(self, index: int) -> str:
    """Returns the path of file `index`."""
    return os.path.join(self._root, self._relative(index))

  def _relative(self, index: int | np.integer) -> str:
    start, end = self._ends[index : index + 2].tolist()
    return os.fsdecode(self._names[start:end])

  def select(self, chosen: Sequence[bool] | np.ndarray) -> "FileList":
    """Returns the files for which `chosen`, [N] bool, is true."""
    index = np.flatnonzero(chosen)
    paths = [self._relative(i) for i in index]
    files = FileList(self._root, paths, self.labels[index], self.class_names)
    files.left_out = self.left_out
    return files

  def __getitem__(self, index: int) -> tuple[bytes, Any]:
    """Reads a file; raises `ImageError` if that fails."""
    path = self.name(index)
    try:
      return _read(path), self.labels[index]
    except OSError as error:
      if not os.path.isfile(path):
        kind = "a dangling link" if os.path.islink(path) else "no file"
        raise ImageError(f"it is {kind}") from None
      raise ImageError(f"it cannot be read ({error.strerror})") from error


def _read(path: str) -> bytes:
  """Reads a file with as few system calls as possible, and never waits for a pipe."""
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
    raise OSError(errno.EIO, f"read {len(data)} of {status.st_size} bytes")
  return data


def is_left_over(name: str) -> bool:
  """Whether a file or folder is hidden, or was left by a system or program."""
  return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def is_image(name: str) -> bool:
  """Whether a file is an image by its suffix."""
  return name.lower().endswith(SUFFIXES)


def sub_folders(folder: Path) -> list[str]:
  """Returns the names of the folders in a folder, sorted."""
  return sorted(
    entry.name
    for entry in os.scandir(folder)
    if not is_left_over(entry.name) and _is_folder(entry)
  )


def own_images(folder: Path) -> Iterator[str]:
  """Yields the names of the images in a folder, without those in its subfolders."""
  for entry in os.scandir(folder):
    name = entry.name
    if is_image(name) and not is_left_over(name) and not _is_folder(entry):
      yield name


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link to itself.
    return False


def _classes(folder: Path) -> list[str]:
  found = sub_folders(folder)
  if not found:
    raise UserError(f"{str(folder)!r} must have a folder of images for each class")
  return found


def files_below(folder: Path) -> list[str]:
  """Returns all files below a folder, readable or not, relative to its parent.

  They are in torchvision's order: the files of a folder come before those of its
  subfolders. Links are followed, except links to a folder that contains them.
  """
  return _files_of(_walk(folder), folder.parent)


class _Place(NamedTuple):
  """A folder and its files."""

  path: str
  real: str  # The path without links.
  names: list[str]
  links: dict[str, str]  # Path -> target, for each image that is a link.


def _files_of(places: Iterable[_Place], root: Path) -> list[str]:
  found = []
  for place in sorted(places):
    below = os.path.relpath(place.path, root)
    found += [f"{below}/{name}" for name in sorted(place.names)]
  return found


def _walk(folder: Path) -> Iterator[_Place]:
  """Yields the folder and those below it."""
  real = Path(os.path.realpath(folder))
  left = [(str(folder), {str(parent) for parent in real.parents})]
  while left:
    place, above = left.pop()
    if (target := os.path.realpath(place)) in above:
      continue
    names, links = [], {}
    for entry in os.scandir(place):
      if is_left_over(entry.name):
        continue
      if _is_folder(entry):
        left.append((entry.path, above | {target}))
      else:
        names.append(entry.name)
        if is_image(entry.name) and entry.is_symlink():
          # If the link leads to another link, that one is not followed. To follow all
          # would be slow, as there may be a million images.
          end = os.path.join(target, os.readlink(entry.path))
          links[entry.path] = os.path.normpath(end)
    yield _Place(place, target, names, links)


def has_image(folder: Path) -> bool:
  """Whether there is an image in a folder or in those below it."""
  return any(any(map(is_image, place.names)) for place in _walk(folder))


def count_other_suffixes(paths: Iterable[str]) -> Counter[str]:
  """Returns the number of files per non-image suffix, in lower case."""
  return Counter(
    os.path.splitext(path)[1].lower() for path in paths if not is_image(path)
  )


def describe_suffixes(counts: Mapping[str, int]) -> tuple[str, ...]:
  """Returns texts such as "10 .tif", sorted by suffix.

  If a missing package could read the files, the text says how to install it.
  """
  texts = []
  for suffix, count in sorted(counts.items()):
    package = needed_package(suffix)
    hint = f" (`pip install {package}` to read them)" if package else ""
    texts.append(f"{count:,} {suffix or 'without a suffix'}{hint}")
  return tuple(texts)


def no_images(folder: Path, paths: Iterable[str], remedy: str) -> UserError:
  """Returns the error for a folder whose files, `paths`, include no images."""
  others = describe_suffixes(count_other_suffixes(paths))
  found = f", only {', '.join(others)}" if others else ""
  return UserError(
    f"the folder {str(folder)!r} has no images ({' '.join(SUFFIXES)}){found}; {remedy}"
  )


def _list_folder(folder: Path, classes: Sequence[str]) -> FileList:
  names = _classes(folder)
  places = {name: list(_walk(folder / name)) for name in names}
  _check_one_class(places)
  every = {name: _files_of(places[name], folder) for name in names}
  images = {name: list(filter(is_image, every[name])) for name in names}
  empty = [name for name in names if not images[name]]
  if empty == names:
    raise no_images(folder, itertools.chain(*every.values()), "add some")
  for name in empty:
    # Photos that cannot be read without another package.
    if any(map(needed_package, count_other_suffixes(every[name]))):
      raise no_images(folder / name, every[name], "add some or remove the folder")
  _check_known([name for name in names if name not in empty], classes, folder)
  paths, labels = [], []
  for label, name in enumerate(classes):
    found = images.get(name, [])
    paths += found
    labels += [label] * len(found)
  files = FileList(folder, paths, labels, classes)
  others = count_other_suffixes(itertools.chain(*every.values()))
  files.left_out = describe_suffixes(others)
  files.left_out += tuple(f"the folder {name!r}, which has no images" for name in empty)
  if outside := list(own_images(folder)):
    files.left_out += (f"{len(outside):,} images outside of the class folders",)
  return files


def _check_one_class(places: Mapping[str, Sequence[_Place]]) -> None:
  """Raises `UserError` if links put a folder or an image into two classes."""
  owners: dict[str, tuple[str, str]] = {}

  def claim(real: str, name: str, path: str) -> None:
    owner, first = owners.setdefault(real, (name, path))
    if owner != name:
      raise UserError(
        f"a link makes {path!r} the same as {first!r} or a part of it, so images "
        f"would have two classes, {owner!r} and {name!r}; remove the link"
      )

  every = [(name, place) for name in places for place in places[name]]
  for name, place in every:
    if any(map(is_image, place.names)):
      claim(place.real, name, place.path)
  for name, place in every:
    for path, target in place.links.items():
      if (folder := os.path.dirname(target)) in owners:
        claim(folder, name, path)
      claim(target, name, path)


def _check_known(found: Sequence[str], classes: Sequence[str], where: Path) -> None:
  unknown = sorted(set(found) - set(classes))
  if unknown:
    raise UserError(
      f"{str(where)!r} has classes that training does not have: "
      f"{', '.join(unknown[:5])}"
    )


def _read_lines(path: Path) -> list[str]:
  """Returns the lines of a text file that are not blank."""
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  return [line for line in lines if line.strip()]
