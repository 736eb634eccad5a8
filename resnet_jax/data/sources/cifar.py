"""Reads CIFAR-10 and CIFAR-100 in their authors' files, packed or unpacked.

There are two forms: the Python form holds pickles, the C form holds records of bytes.
Nothing is written to disk, and a pickle can create only numbers, strings, lists and
dictionaries.
Letters: N images of a split, K images of a file.
"""

import dataclasses
import io
import os
import pickle
import pickletools
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resnet_jax.data import ImageArrays
from resnet_jax.data.images.png import encode_png
from resnet_jax.data.sources.base import SPLITS, take_part, whole_split
from resnet_jax.runtime.errors import UserError, setting_name

NUM_IMAGES = {"train": 50_000, "test": 10_000}
_BYTES = 3 * 32 * 32  # Of an image: the red plane, then green, then blue.
# Limit for one file: the pixels of a whole split, and 100 bytes for each image's name.
_MAX_BYTES = 50_000 * (_BYTES + 100)
# A damaged pickle may give an object a huge number. `pickle` would allocate memory for
# all smaller numbers.
_MAX_MEMO = 1_000_000


@dataclasses.dataclass(frozen=True)
class _Set:
  """The file names of a data set. Files of the C form end in .bin.

  Attributes:
    places: the files and folders that hold the set, in order of preference.
    splits: the files of each split, in the Python form.
    meta: the file of the class names in the Python form, and in the C form.
    keys: keys of the labels and of the class names in pickles.
    num_classes: number of classes.
    label_bytes: number of label bytes before each image in the C form; the last one is
      used.
  """

  places: tuple[str, ...]
  splits: dict[str, tuple[str, ...]]
  meta: tuple[str, str]
  keys: tuple[str, str]
  num_classes: int
  label_bytes: int

  def files(self, split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the files of a split in the Python and the C form, class names last."""
    python, binary = self.meta
    names = self.splits[split]
    return (*names, python), (*(f"{name}.bin" for name in names), binary)


_SETS = {
  "cifar10": _Set(
    places=(
      *("cifar-10-batches-py", "cifar-10-python*.tar*"),
      *("cifar-10-batches-bin", "cifar-10-binary*.tar*"),
    ),
    splits={
      "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
      "test": ("test_batch",),
    },
    meta=("batches.meta", "batches.meta.txt"),
    keys=("labels", "label_names"),
    num_classes=10,
    label_bytes=1,
  ),
  "cifar100": _Set(
    places=(
      *("cifar-100-python", "cifar-100-python*.tar*"),
      *("cifar-100-binary", "cifar-100-binary*.tar*"),
    ),
    splits={"train": ("train",), "test": ("test",)},
    meta=("meta", "fine_label_names.txt"),
    keys=("fine_labels", "fine_label_names"),
    num_classes=100,
    label_bytes=2,
  ),
}
URLS = {
  "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
  "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
}


@dataclasses.dataclass(frozen=True)
class EncodedImages:
  """Images in memory that are read one by one, as PNG files: [i] is (content, label).

  Attributes:
    arrays: the images.
    where: name of the split for messages.
  """

  arrays: ImageArrays
  where: str

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the labels, in order."""
    return self.arrays.class_names

  def __len__(self) -> int:
    return len(self.arrays)

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    """Returns (content of a PNG file, label)."""
    image = encode_png(self.arrays.images[index])
    return image, int(self.arrays.labels[index])

  def name(self, index: int) -> str:
    """Returns the name of the image for messages."""
    return f"image {index} of {self.where}"


def find_cifar(name: str, data_dir: str) -> Path | None:
  """Returns the archive or folder of the data set, if there is one.

  Args:
    name: name of a data set; the result is None unless it is "cifar10" or "cifar100".
    data_dir: an archive, a folder of unpacked files, or a folder that holds either;
      "" is TFDS's default. If that folder holds the set in TFDS's layout, that set is
      preferred and the result is None.
  """
  if name not in _SETS:
    return None
  root = Path(os.path.expanduser(data_dir or "~/tensorflow_datasets"))
  known = {
    file for split in SPLITS for form in _SETS[name].files(split) for file in form
  }
  if root.is_file() or any((root / file).is_file() for file in known):
    return root
  if any(root.glob(f"{name}/*/*.array_record*")):
    return None
  found = (path for place in _SETS[name].places for path in sorted(root.glob(place)))
  return next(found, None)


def load_cifar(
  name: str, path: Path, split: str, stream: bool = False
) -> ImageArrays | EncodedImages:
  """Reads a split, in the order of the files.

  Args:
    name: "cifar10", or "cifar100" with its fine labels.
    path: from `find_cifar`.
    split: "train" or "test", or a part in TFDS's syntax, such as "train[:45000]".
    stream: whether the images are given one by one.

  Raises:
    UserError: the split is unknown; files are missing, damaged or of another data set;
      an archive has links, or names outside of its folder.
  """
  kind, whole = _SETS[name], whole_split(split)
  forms = kind.files(whole)
  found: dict[str, bytes] = {}
  again = f"download {URLS[name]} again"
  for file, content in _read(path, {*forms[0], *forms[1]}, again):
    found[file] = content
    if any(found.keys() >= set(form) for form in forms):
      break
  *files, meta = max(forms, key=lambda form: len(found.keys() & set(form)))
  if missing := [file for file in (*files, meta) if file not in found]:
    raise UserError(
      f"{setting_name('data.dir')}: {str(path)!r} has no {', '.join(missing)}, which "
      f"{name} needs; name another place, or {again}"
    )
  pickled = meta == kind.meta[0]
  count = NUM_IMAGES[whole] // len(files)
  images = np.empty((len(files), count, 32, 32, 3), np.uint8)
  labels = np.empty((len(files), count), np.int32)
  file = meta
  try:
    names = _names(found.pop(meta), kind, pickled)
    for i, file in enumerate(files):
      read = _from_pickle if pickled else _from_records
      pixels, labels[i] = read(found.pop(file), kind, count)
      images[i] = pixels.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
      if labels[i].max() >= kind.num_classes:
        raise _DamageError(f"it has the label {labels[i].max()}")
  except (_DamageError, UnicodeError) as error:
    raise UserError(f"{str(path)!r}: {file} is damaged: {error}; {again}") from error
  arrays = ImageArrays(images.reshape(-1, 32, 32, 3), labels.ravel(), names)
  arrays = take_part(arrays, whole, split)
  return EncodedImages(arrays, f"{name} {split}") if stream else arrays


def _read(
  path: Path, wanted: Collection[str], again: str
) -> Iterator[tuple[str, bytes]]:
  """Yields (name, content) of the wanted files of a folder or archive."""
  if path.is_dir():
    for name in sorted(wanted):
      if (path / name).is_file():
        with (path / name).open("rb") as file:
          yield name, file.read(_MAX_BYTES)
    return
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        parts = member.name.split("/")
        if ".." in parts or not parts[0] or not (member.isfile() or member.isdir()):
          raise UserError(
            f"{str(path)!r} has {member.name!r}, which is a link or lies outside of "
            f"the archive; {again}"
          )
        content = archive.extractfile(member) if parts[-1] in wanted else None
        if content:
          yield parts[-1], content.read(_MAX_BYTES)
  except UserError:
    raise
  except Exception as error:  # `tarfile` and decompressors raise errors of many types.
    reason = getattr(error, "strerror", None) or "it is truncated or no archive"
    raise UserError(
      f"{str(path)!r} cannot be read as a .tar.gz archive: {reason}; {again}"
    ) from error


class _DamageError(Exception):
  """A file differs from what the authors wrote."""


class _Made:
  """Replaces NumPy's classes in a pickle; it keeps its arguments and its state."""

  state: object = None

  def __init__(self, *arguments: object):
    self.arguments = arguments

  def __setstate__(self, state: object) -> None:
    self.state = state


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> type[_Made]:
    if f"{module}.{name}" in _CLASSES:
      return _Made
    raise _DamageError(f"it asks for {module}.{name}, which is refused")


_CLASSES = {
  *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
  *("numpy.ndarray", "numpy.dtype"),
}


def _unpickle(content: bytes) -> dict[Any, Any]:
  """Returns the dictionary of a pickle; strings of Python 2 become `str`."""
  try:
    for opcode, argument, _ in pickletools.genops(content):
      if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > _MAX_MEMO:
        raise _DamageError(f"it names object number {argument}")
    found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
  except _DamageError:
    raise
  except Exception as error:  # `pickle` raises errors of many types.
    raise _DamageError(f"it is no pickle ({error})") from error
  if not isinstance(found, dict):
    raise _DamageError("it has no dictionary")
  return found


def _names(content: bytes, kind: _Set, pickled: bool) -> tuple[str, ...]:
  names = _unpickle(content).get(kind.keys[1]) if pickled else content.decode().split()
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise _DamageError(f"it has no {kind.keys[1]!r}")
  if len(names) != kind.num_classes:
    raise _DamageError(f"it has {len(names)} class names, not {kind.num_classes}")
  return tuple(names)


def _from_pickle(
  content: bytes, kind: _Set, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns pixels uint8 [K, 3072] and labels [K] of K = `count` images."""
  found = _unpickle(content)
  labels = found.get(kind.keys[0])
  match found.get("data"):
    case _Made(
      state=(
        _,
        (_, width),
        _Made(arguments=("u1" | "|u1", *_)),
        bool() as is_fortran,
        str() | bytes() as data,
      )
    ) if width == _BYTES:
      data = data.encode("latin1") if isinstance(data, str) else data
    case _:
      raise _DamageError(f"it has no 'data' of {_BYTES} bytes an image")
  if not isinstance(labels, list) or not all(
    type(label) is int and 0 <= label < 256 for label in labels
  ):
    raise _DamageError(f"it has no {kind.keys[0]!r}")
  if len(data) != count * _BYTES or len(labels) != count:
    raise _DamageError(
      f"it has {len(data) / _BYTES:,g} images and {len(labels):,} labels, not {count:,}"
    )
  order: Literal["F", "C"] = "F" if is_fortran else "C"
  pixels = np.frombuffer(data, np.uint8).reshape((count, _BYTES), order=order)
  return pixels, np.array(labels)


def _from_records(
  content: bytes, kind: _Set, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Like `_from_pickle`, for records of one or two labels and the pixels."""
  size = kind.label_bytes + _BYTES
  if len(content) != count * size:
    raise _DamageError(f"it has {len(content) / size:,g} images, not {count:,}")
  rows = np.frombuffer(content, np.uint8).reshape(count, size)
  return rows[:, kind.label_bytes :], rows[:, kind.label_bytes - 1]
