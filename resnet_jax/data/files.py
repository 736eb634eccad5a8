"""Images as files: which there are, of which class, in which split.

Four layouts: a folder for each class, below `train/`, `val/` ... or with no splits;
Tiny-ImageNet's own; and a table of paths and labels.
"""

import csv
import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
# What an evaluation takes where no split is named, the first that is there.
EVAL_SPLITS = ("val", "validation", "valid", "test")
_MAX_CLASSES = 100_000
# Of images whose layout has no splits.
_PARTS = ["train", "val"]


class ImageError(ValueError):
  """An image cannot be read; the text says why."""


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


def find_root(config_dir: str) -> Path:
  """Returns the folder or table that `config.data.dir` names.

  Raises:
    ValueError: it names none.
  """
  if not config_dir:
    raise ValueError(
      "config.data.dir='' must be a folder or .csv file with config.data.name='folder'"
    )
  return Path(os.path.expanduser(config_dir))


def list_splits(root: Path) -> list[str]:
  """Returns the splits that a folder or table of images has.

  Raises:
    FileNotFoundError: there is no such folder or table.
  """
  if not root.exists():
    raise FileNotFoundError(
      f"no config.data.dir={str(root)!r}: name a folder with a folder for each class, "
      "or a .csv file of path,label"
    )
  if root.is_file():
    return sorted({row.split for row in _read_table(root)} - {""}) or _PARTS
  # Tiny-ImageNet's test images have no labels.
  tiny = (root / "wnids.txt").is_file()
  names = _PARTS if tiny else ["train", *EVAL_SPLITS]
  return [name for name in names if (root / name).is_dir()] or _PARTS


def list_images(
  root: Path, split: str, val_share: float, class_names: Sequence[str] = ()
) -> FileList:
  """Lists a split.

  Args:
    root: a folder, or a .csv file with the columns path, label and, if wanted, split;
      a label is a class index if all are whole numbers, else a class name.
    split: one of `list_splits`, or "" for the first of `EVAL_SPLITS`.
    val_share: of images whose layout has no splits: the share of each class that is
      "val", drawn by a hash of the file's name; "train" is the rest.
    class_names: in the order of their labels; else those of "train", sorted.

  Raises:
    ValueError: no such split, a class that has no images or that is not among
      `class_names`, or a table that is none.
    FileNotFoundError: there is no such folder or table.
  """
  splits = list_splits(root)
  if not split:
    split = next((name for name in EVAL_SPLITS if name in splits), "")
  if not split:
    raise ValueError(
      f"{str(root)!r} has {', '.join(splits)} and no split to evaluate: add one of "
      f"{', '.join(EVAL_SPLITS)}, or name a folder with the classes to have a part of "
      "it drawn"
    )
  if split not in splits:
    raise ValueError(
      f"config.data.train_split or eval_split={split!r} is not in {str(root)!r}; "
      f"there are: {', '.join(splits)}"
    )
  if root.is_file():
    return _list_table(root, split, val_share, class_names)
  if (root / "wnids.txt").is_file():
    return _list_tiny_imagenet(root, split)
  if (root / split).is_dir():
    folder = root / ("train" if "train" in splits else split)
    return _list_folder(root / split, class_names or _classes(folder))
  return _part(_list_folder(root, class_names or _classes(root)), split, val_share)


def _classes(folder: Path) -> list[str]:
  found = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and not entry.name.startswith(".")
  )
  if not found:
    raise ValueError(f"{str(folder)!r} must have a folder of images for each class")
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
        raise ValueError(
          f"{str(folder / name)!r} has no images ({' '.join(SUFFIXES)}); add some or "
          "remove the folder"
        )
      paths += found
      labels += [label] * len(found)
  return FileList(folder, paths, labels, classes)


def _check_known(found: Sequence[str], classes: Sequence[str], where: Path) -> None:
  unknown = sorted(set(found) - set(classes))
  if unknown:
    raise ValueError(
      f"{str(where)!r} has classes that training has not: {', '.join(unknown[:5])}"
    )


def _read_lines(path: Path) -> list[str]:
  """Returns the lines of a text file that are not blank."""
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  return [line for line in lines if line.strip()]


def _list_tiny_imagenet(root: Path, split: str) -> FileList:
  """Tiny-ImageNet as it is downloaded; classes in the order of their WordNet ids."""
  classes = sorted(_read_lines(root / "wnids.txt"))
  label = {wnid: i for i, wnid in enumerate(classes)}
  words = {}
  if (root / "words.txt").is_file():
    lines = (
      (root / "words.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    )
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
  names = [words.get(wnid, wnid) for wnid in classes]
  table = root / "val" / "val_annotations.txt"
  if split != "val" or not table.is_file():  # Many sort it into folders.
    files = _list_folder(root / split, classes)
    files.class_names = tuple(names)
    return files
  rows = [
    line.split("\t")
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines()
    if line
  ]
  wrong = [row for row in rows if len(row) < 2 or row[1] not in label]
  if wrong:
    raise ValueError(f"{table}: {wrong[0]} must be a file and a name in wnids.txt")
  paths = [row[0] for row in rows]
  return FileList(root / "val" / "images", paths, [label[r[1]] for r in rows], names)


class _Row(NamedTuple):
  line: int
  path: str
  label: str
  split: str  # "" without that column.


def _read_table(path: Path) -> list[_Row]:
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      reader = csv.reader(file)
      rows = [(reader.line_num, row) for row in reader if row]
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"{path} is no .csv file in UTF-8: {error}") from error
  columns = ["path", "label"]
  if rows:
    header = [cell.strip().lower() for cell in rows[0][1]]
    if "path" in header or "label" in header:
      columns, rows = header, rows[1:]
  if not {"path", "label"} <= set(columns):
    raise ValueError(f"{path}, line 1: {','.join(columns)!r} must name path and label")
  if not rows:
    raise ValueError(f"{path} has no rows of path,label")
  needed = {"path", "label", "split"} & set(columns)
  table = []
  for line, row in rows:
    cells = dict(zip(columns, row, strict=False))
    if len(row) != len(columns) or not all(cells[name].strip() for name in needed):
      raise ValueError(
        f"{path}, line {line}: {','.join(row)[:60]!r} must be {','.join(columns)}; "
        "other columns need a first line that names path and label"
      )
    split = cells.get("split", "").strip()
    table.append(_Row(line, cells["path"], cells["label"].strip(), split))
  return table


def _list_table(
  path: Path, split: str, val_share: float, class_names: Sequence[str]
) -> FileList:
  rows = _read_table(path)
  texts = [row.label for row in rows]
  if all(text.removeprefix("-").isdecimal() for text in texts):
    limit = len(class_names) or _MAX_CLASSES
    for row in rows:
      if len(row.label) > 9 or not 0 <= int(row.label) < limit:
        raise ValueError(
          f"{path}, line {row.line}: label {row.label[:20]} must be a class index "
          f"below {limit}; number the classes from 0, or name them"
        )
    labels = list(map(int, texts))
    classes = list(class_names) or [str(i) for i in range(max(labels) + 1)]
  else:
    classes = list(class_names) or sorted(set(texts))
    _check_known(texts, classes, path)
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[text] for text in texts]
  files = FileList(path.parent, [row.path for row in rows], labels, classes)
  if rows[0].split:
    return files.select([row.split == split for row in rows])
  return _part(files, split, val_share)


def _part(files: FileList, split: str, val_share: float) -> FileList:
  """Returns the "train" or "val" part of files that have no splits of their own."""
  # By a hash of the name, so that a file that comes or goes moves no others between
  # training and evaluation, but for one at the border.
  names = map(files._relative, range(len(files)))
  digests = [hashlib.blake2b(os.fsencode(name)).digest() for name in names]
  order = np.array(sorted(range(len(files)), key=digests.__getitem__))
  order = order[np.argsort(files.labels[order], kind="stable")]
  counts = np.bincount(files.labels)
  first = np.cumsum(counts) - counts
  place = np.empty(len(files), int)  # Of each file in the shuffled order of its class.
  place[order] = np.arange(len(files)) - np.repeat(first, counts)
  is_val = place < np.round(counts * val_share)[files.labels]
  return files.select(is_val == (split == "val"))
