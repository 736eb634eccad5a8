"""Reads images and labels from WebDataset's tar files.

A sample is a run of files in a tar whose names are equal up to the first dot of their
last part: `0001.jpg` and `0001.cls`. An index of each tar is written once to the user's
cache folder, so that any image can then be read without reading those before it.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from resnet_jax.config.schema import DataConfig
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.formats import SUFFIXES
from resnet_jax.data.sources.records import Table
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError, map_with_flags, setting_name
from resnet_jax.runtime.private_folder import cache_dir

_LABELS = "cls", "json", "txt"  # Suffixes of files with labels, in order of preference.
_KEYS = "label", "labels", "cls", "class", "target"  # Of labels in a .json file.
_MOST_BYTES = 2**20  # Of a file with a label.
_CHUNK_BYTES = 2**20
_FORMAT = 3  # Of the index. Another number makes all indexes be written again.


class Index(NamedTuple):
  """The samples of a tar.

  Attributes:
    offsets: [R] int64, where the image of each sample begins.
    sizes: [R] int64, the bytes of each image.
    names: the name of each image in the tar.
    labels: the label of each sample.
  """

  offsets: np.ndarray
  sizes: np.ndarray
  names: list[str]
  labels: list[Any]


def open_files(paths: Sequence[Path], config: DataConfig) -> Table:
  """Reads or writes the indexes of tar files; the images are read on demand.

  Args:
    paths: the tars of a split, in order.
    config: `image_column` and `label_column` are used, which are the suffixes of the
      files with images and with labels.

  Raises:
    UserError: a tar is damaged, or a sample has no image, several images or no label.
  """
  names = config.image_column, config.label_column
  image, label = (name.lower().removeprefix(".") for name in names)
  read = functools.partial(_find_index, image=image, label=label)
  console = Console(stderr=True)
  bar = Progress(console=console, transient=True, disable=not console.is_terminal)
  with bar, ThreadPoolExecutor(config.num_threads or 8) as pool:
    found = map_with_flags(pool, read, paths)
    indexes = list(bar.track(found, len(paths), description="reading the tar files"))
  labels = [label for index in indexes for label in index.labels]
  folders = paths[0].parent, Path(os.path.expanduser(config.dir))
  return Table(TarReader(paths, indexes), _plain(labels), _class_names(folders))


def _plain(labels: list[Any]) -> list[Any]:
  """Turns texts into class indices, if all of them are whole numbers.

  If some labels are words, a number among them is a class name, too.
  """
  every = itertools.chain(*(x if isinstance(x, list) else [x] for x in labels))
  texts = {x for x in every if isinstance(x, str)}
  are_words = not all(text.removeprefix("-").isdecimal() for text in texts)

  def plain(label: Any) -> Any:
    if isinstance(label, list):
      return [plain(one) for one in label]
    if are_words:
      return str(label) if isinstance(label, int) else label
    return int(label) if isinstance(label, str) else label

  return [plain(label) for label in labels]


def _class_names(folders: Sequence[Path]) -> tuple[str, ...]:
  """Returns the lines of classes.txt in the first folder that has this file, or ().

  Raises:
    UserError: the file cannot be read, or has an empty line between two names.
  """
  path = next((x for x in (y / "classes.txt" for y in folders) if x.is_file()), None)
  if path is None:
    return ()
  try:
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{str(path)!r} is no text in UTF-8: {error}") from error
  names = tuple(line.strip() for line in lines)
  if not all(names):
    raise UserError(
      f"{str(path)!r}, line {names.index('') + 1} is empty; name a class in each line"
    )
  return names


def _find_index(path: Path, image: str, label: str) -> Index:
  """Returns the index of a tar from the cache; writes it if it is not there."""
  status = path.stat()
  facts = [_FORMAT, str(path.resolve()), status.st_size, status.st_mtime_ns]
  key = json.dumps([*facts, image, label]).encode()
  name = hashlib.blake2b(key, digest_size=16).hexdigest()
  try:
    stored = cache_dir() / "tar_indexes" / f"{name}.json"
  except RuntimeError:  # The user has no home folder.
    return make_index(path, image, label)
  # An index that is missing or damaged is made again.
  with contextlib.suppress(OSError, ValueError, TypeError):
    offsets, sizes, names, labels = json.loads(stored.read_bytes())
    index = Index(np.array(offsets, np.int64), np.array(sizes, np.int64), names, labels)
    if len(index.offsets) == len(index.sizes) == len(names) == len(labels):
      return index
  index = make_index(path, image, label)
  # If another process writes the index, or the disk is full, it is only used here.
  with contextlib.suppress(OSError):
    stored.parent.mkdir(parents=True, exist_ok=True)
    with replacing(str(stored)) as part:
      content = index.offsets.tolist(), index.sizes.tolist(), index.names, index.labels
      Path(part).write_text(json.dumps(content))
  return index


def make_index(path: Path, image: str = "", label: str = "") -> Index:
  """Reads a tar from its beginning to its end.

  Args:
    path: an uncompressed tar.
    image: suffix of the images, such as "jpg"; "" is any suffix of an image.
    label: suffix of the labels, such as "cls", or a key of the .json files, in lower
      case; "" is the first of cls, json and txt that a sample has.

  Raises:
    UserError: see `open_files`.
  """
  rows = []
  try:
    with tarfile.open(path, "r:") as archive:
      for key, files in _samples(path, archive):
        rows.append(_row(path, archive, key, files, image, label))
        archive.members = []  # type: ignore[attr-defined]  # A list of all files.
      _check_end(path, archive.offset)
  except (tarfile.TarError, OSError, EOFError) as error:
    raise UserError(
      f"{str(path)!r} cannot be read as a tar without compression: {error}; download "
      "or write it again"
    ) from error
  if not rows:
    raise UserError(f"{str(path)!r} has no files")
  offsets, sizes, names, labels = (list(column) for column in zip(*rows, strict=True))
  return Index(np.array(offsets, np.int64), np.array(sizes, np.int64), names, labels)


# The files of a sample: suffix -> file.
_Files = dict[str, tarfile.TarInfo]


def _samples(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, _Files]]:
  """Yields the key and the files of each sample, by WebDataset's rule."""
  last, files = "", _Files()
  for member in archive:
    folder, _, file = member.name.rpartition("/")
    stem, _, suffix = file.partition(".")
    if not stem:  # WebDataset leaves out hidden files.
      continue
    # A link has no content of its own, and the content of a sparse file has gaps.
    if member.issym() or member.islnk() or member.issparse():
      kind = "sparse file" if member.issparse() else "link"
      raise UserError(
        f"{str(path)!r} has {member.name!r}, which is a {kind}; write the tar with "
        "whole files: tar --dereference --hard-dereference, without --sparse"
      )
    if not member.isreg():
      continue
    key = f"{folder}/{stem}" if folder else stem
    if key != last and files:
      yield last, files
      files = {}
    last, suffix = key, suffix.lower()
    if suffix in files:
      raise UserError(
        f"{str(path)!r}: the sample {key!r} has two files of the suffix {suffix!r}; "
        "give each sample a name of its own"
      )
    files[suffix] = member
  if files:
    yield last, files


def _check_end(path: Path, end: int) -> None:
  """Raises `UserError` if a tar has more data after its last file.

  `tarfile` takes a damaged header for the end of the tar, and two joined tars for one.
  """
  with path.open("rb") as file:
    file.seek(end)
    while chunk := file.read(_CHUNK_BYTES):
      if chunk.strip(b"\0"):
        raise UserError(
          f"{str(path)!r} is damaged at byte {end:,}, or is several tars in one file: "
          "more data follows its last readable file; download or write it again"
        )


def _row(
  path: Path, archive: tarfile.TarFile, key: str, files: _Files, image: str, label: str
) -> tuple[int, int, str, Any]:
  """Returns the offset, size and name of the image of a sample, and its label."""

  def fault(text: str) -> UserError:
    return UserError(f"{path}: the sample {key!r} has {', '.join(files)}: {text}")

  images = [image] if image else [x for x in files if f".{x}".endswith(SUFFIXES)]
  if len(images) != 1 or images[0] not in files:
    raise fault(
      "it must have one image; the suffix of the images can be named in "
      f"{setting_name('data.image_column')}"
    )
  # `label` is a suffix, or else a key in the .json file.
  suffixes = (label,) if label in files else ("json",) if label else _LABELS
  suffix = next((x for x in suffixes if x in files), None)
  if suffix is None:
    raise fault(
      f"it must have a label, a file of the suffix {label or ', '.join(_LABELS)}, next "
      f"to its image in the tar; {setting_name('data.label_column')} names the suffix"
    )
  member = files[images[0]]
  content = _read_label(path, archive, files[suffix])
  try:
    value: Any = content.decode().strip()
    if suffix == "json":
      found = {key.lower(): x for key, x in json.loads(value).items()}
      keys = [label] if label and label != "json" else _KEYS
      value = next(found[key] for key in keys if key in found)
  except (ValueError, AttributeError, StopIteration, RecursionError) as error:
    raise fault(
      f"the file .{suffix} has no label; {setting_name('data.label_column')} names the "
      "suffix of the files with the labels, or the key of the label in the .json files"
    ) from error
  return member.offset_data, member.size, member.name, value


def _read_label(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
  if member.size > _MOST_BYTES:
    raise UserError(
      f"{path}: {member.name!r} has {member.size:,} bytes, too many for a label"
    )
  file = archive.extractfile(member)
  assert file is not None  # It is a regular file.
  return file.read()


class TarReader:
  """Reads the images of some tar files."""

  def __init__(self, paths: Sequence[Path], indexes: Sequence[Index]):
    """Opens nothing yet."""
    self._paths = list(map(str, paths))
    self._starts = np.cumsum([0, *(len(index.labels) for index in indexes)])
    self._offsets = np.concatenate([index.offsets for index in indexes])
    self._sizes = np.concatenate([index.sizes for index in indexes])
    self._names = [name for index in indexes for name in index.names]

  def _path(self, record: int) -> str:
    return self._paths[int(np.searchsorted(self._starts, record, "right")) - 1]

  def name(self, record: int) -> str:
    """Returns the name of the tar and of the image in it."""
    return f"{Path(self._path(record)).name}/{self._names[record]}"

  def names(self) -> list[str]:
    """Returns the names of all images, see `name`."""
    tars = np.repeat([Path(path).name for path in self._paths], np.diff(self._starts))
    return [f"{a}/{b}" for a, b in zip(tars.tolist(), self._names, strict=True)]

  def sizes(self) -> bytes:
    """Returns the size of each image."""
    sizes: bytes = self._sizes.astype("<i8").tobytes()
    return sizes

  def read(self, record: int) -> bytes:
    """Returns the content of an image file, or raises `ImageError`."""
    size = int(self._sizes[record])
    try:
      file = os.open(self._path(record), os.O_RDONLY)
      try:
        data = os.pread(file, size, int(self._offsets[record]))
      finally:
        os.close(file)
    except OSError as error:
      raise ImageError(f"it cannot be read ({error.strerror})") from error
    if len(data) != size:
      raise ImageError(f"read {len(data)} of its {size} bytes")
    return data
