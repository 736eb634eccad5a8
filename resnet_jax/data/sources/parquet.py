"""Reads images and labels from parquet files, as the Hugging Face hub stores them.

A file has groups of rows, and a group can only be read as a whole. Reading one image is
cheap if the groups are small, or if all of them fit into the cache of this process.
"""

import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_jax.config.schema import DataConfig
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.sources.records import Table
from resnet_jax.runtime.errors import UserError, setting_name
from resnet_jax.runtime.terminal import warn

if TYPE_CHECKING:  # It takes half a second to import.
  import pyarrow

_CACHE_BYTES = 2**30  # For the images of a process.
_LARGE_GROUP = 2**22  # Bytes; more than about 40 photos.
_OPEN_FILES = 64  # Of a thread.
# The usual names of columns, in order of preference.
_IMAGE_NAMES = "image", "img", "jpg", "png", "webp", "picture"
_LABEL_NAMES = "label", "labels", "fine_label", "target", "class", "cls", "value"


class _File(NamedTuple):
  """What is read of a file before its images.

  Attributes:
    image: name of the column of images.
    is_struct: whether it holds structs with the fields "bytes" and "path".
    class_names: names of the classes, or ().
    labels: the label of each row.
    names: for each row the name of its image, or None.
    groups: number of rows and of bytes of each group.
  """

  image: str
  is_struct: bool
  class_names: tuple[str, ...]
  labels: list[Any]
  names: list[str | None]
  groups: list[tuple[int, int]]


def open_files(paths: Sequence[Path], config: DataConfig) -> Table:
  """Reads the labels of parquet files; the images are read on demand.

  Args:
    paths: the files of a split, in order.
    config: `image_column`, `label_column` and `labels` are used.

  Raises:
    UserError: a file is damaged, it has no such column, or the files have different
      columns or classes.
  """
  files = [_open(path, config) for path in paths]
  first = files[0]
  for path, file in zip(paths, files, strict=True):
    for text, found, expected in (
      ("columns", file[:2], first[:2]),
      ("class names", file.class_names, first.class_names),
    ):
      if found != expected:
        raise UserError(
          f"{str(path)!r} has other {text} than {str(paths[0])!r}; write the files of "
          "a split from one data set"
        )
  _warn_of_large_groups(paths[0].parent, [x for file in files for x in file.groups])
  labels = [label for file in files for label in file.labels]
  return Table(ParquetReader(paths, files), labels, first.class_names)


def _open(path: Path, config: DataConfig) -> _File:
  from pyarrow import parquet

  try:
    with parquet.ParquetFile(path, memory_map=True) as file:
      schema = file.schema_arrow
      image = _image_column(schema, config.image_column, str(path))
      fields = _fields(schema.field(image).type)
      label, class_names = _label_column(schema, config, str(path))
      labels = _read(file, label)
      names: list[str | None] = [None] * len(labels)
      if "path" in fields:
        names = _read(file, f"{image}.path", "path")
      groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
      sizes = [(group.num_rows, group.total_byte_size) for group in groups]
  except UserError:
    raise
  except Exception as error:  # pyarrow raises errors of many types.
    raise UserError(
      f"{str(path)!r} cannot be read as a parquet file: "
      f"{str(error).splitlines()[0][:200]}; download or write it again"
    ) from error
  return _File(image, bool(fields), class_names, labels, names, sizes)


def _warn_of_large_groups(folder: Path, groups: Sequence[tuple[int, int]]) -> None:
  rows, size = map(sum, zip((0, 0), *groups, strict=True))
  if size > _CACHE_BYTES and size / len(groups) > _LARGE_GROUP:
    warn(
      f"{str(folder)!r} has {rows // len(groups)} images in a group of rows, and a "
      "whole group is read for each image; write the files with a smaller "
      "row_group_size"
    )


def _read(file: Any, column: str, field: str = "") -> list[Any]:
  """Returns the values of a column, or of the field of a struct."""
  values = file.read(columns=[column], use_threads=False).column(0)
  if field:
    import pyarrow.compute

    values = pyarrow.compute.struct_field(values, [field])
  found: list[Any] = values.to_pylist()
  return found


def _features(schema: "pyarrow.Schema") -> Mapping[str, Any]:
  """Returns the features of Hugging Face's `datasets`; {} if there are none."""
  try:
    stored = json.loads((schema.metadata or {})[b"huggingface"])
    features = stored["info"]["features"]
  except (KeyError, TypeError, ValueError):
    return {}
  return features if isinstance(features, dict) else {}


def _fields(kind: "pyarrow.DataType") -> dict[str, "pyarrow.DataType"]:
  """Returns the fields of a struct and their types; {} for other types."""
  import pyarrow

  if not pyarrow.types.is_struct(kind):
    return {}
  fields = (kind.field(i) for i in range(kind.num_fields))
  return {field.name: field.type for field in fields}


def _is_image(kind: "pyarrow.DataType") -> bool:
  """Whether a column of a type holds bytes, or structs with the field "bytes"."""
  from pyarrow import types

  kind = _fields(kind).get("bytes", kind)
  tests = types.is_binary, types.is_large_binary, types.is_binary_view
  return any(test(kind) for test in tests)


def _image_column(schema: "pyarrow.Schema", asked: str, where: str) -> str:
  """Returns the name of the column of images: bytes, or structs with bytes."""
  images = [field.name for field in schema if _is_image(field.type)]
  if not images or (asked in schema.names and asked not in images):
    shown = [x for x in schema if x.name == asked] or schema
    kinds = [f"{x.name} ({str(x.type)[:80]})" for x in shown]
    raise UserError(
      f"{where!r}: no column of images among {', '.join(kinds)[:300]}; its type must "
      "be bytes, or a struct with the field 'bytes', with the content of image files"
    )
  features = _features(schema)
  marked = [x for x in images if _kind(features.get(x)) == "Image"]
  return _choose(asked, marked or images, _IMAGE_NAMES, "image", schema.names, where)


def _label_column(
  schema: "pyarrow.Schema", config: DataConfig, where: str
) -> tuple[str, tuple[str, ...]]:
  """Returns the name of the column of labels, and the class names if it has them."""
  features = _features(schema)
  names = {name: _class_names(feature) for name, feature in features.items()}
  marked = [name for name in schema.names if names.get(name)]
  usual = [name for name in _LABEL_NAMES if name in schema.names]
  if config.labels == "numbers":
    marked = []
  asked = config.label_column
  name = _choose(asked, marked or usual, _LABEL_NAMES, "label", schema.names, where)
  return name, names.get(name) or ()


def _kind(feature: Any) -> str:
  return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _class_names(feature: Any) -> tuple[str, ...]:
  """Returns the names of a `ClassLabel`, or of a list of them; else ()."""
  if isinstance(feature, list) and len(feature) == 1:  # The oldest form of a list.
    feature = feature[0]
  if _kind(feature) in ("Sequence", "List", "LargeList"):
    feature = feature.get("feature")
  names = feature.get("names") if _kind(feature) == "ClassLabel" else None
  return tuple(map(str, names)) if isinstance(names, list) else ()


def _choose(
  asked: str,
  found: Sequence[str],
  preferred: Iterable[str],
  what: str,
  columns: Sequence[str],
  where: str,
) -> str:
  """Returns the name of the column of images or labels."""
  if asked in found or (asked in columns and what == "label"):
    return asked
  if len(found) == 1 and not asked:
    return found[0]
  usual = [name for name in preferred if name in found]
  if usual and not asked:
    return usual[0]
  reason = f"no column {asked!r}" if asked else f"no one column of {what}s"
  raise UserError(
    f"{where!r} has {reason} among {', '.join(columns)}; name it in "
    f"{setting_name(f'data.{what}_column')}"
  )


class ParquetReader:
  """Reads the images of the rows of some parquet files."""

  def __init__(self, paths: Sequence[Path], files: Sequence[_File]):
    """Opens nothing yet."""
    self._paths = list(map(str, paths))
    self._column = f"{files[0].image}.bytes" if files[0].is_struct else files[0].image
    self._is_struct = files[0].is_struct
    self._names = [name for file in files for name in file.names]
    groups = [(f, g) for f, file in enumerate(files) for g in range(len(file.groups))]
    rows, sizes = np.array([x for file in files for x in file.groups]).T.reshape(2, -1)
    self._groups, self._sizes = groups, sizes
    self._starts = np.cumsum([0, *rows.tolist()])
    self._reset()

  def _reset(self) -> None:
    self._cache: OrderedDict[int, Any] = OrderedDict()
    self._cached_bytes = 0
    self._lock, self._files = threading.Lock(), threading.local()
    # Only one thread reads a group.
    self._group_locks: dict[int, threading.Lock] = defaultdict(threading.Lock)

  def __getstate__(self) -> dict[str, Any]:
    hidden = "_cache", "_cached_bytes", "_lock", "_files", "_group_locks"
    return {name: x for name, x in self.__dict__.items() if name not in hidden}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._reset()

  def _group_of(self, record: int) -> int:
    return int(np.searchsorted(self._starts, record, "right")) - 1

  def name(self, record: int) -> str:
    """Returns the name of the image, or else its file and its row in the split."""
    file = Path(self._paths[self._groups[self._group_of(record)][0]]).name
    return f"{file}/{self._names[record] or f'row {record}'}"

  def names(self) -> list[str]:
    """Returns the names of all images, see `name`."""
    files = [Path(path).name for path in self._paths]
    rows = np.repeat([file for file, _ in self._groups], np.diff(self._starts))
    named = zip(rows.tolist(), self._names, strict=True)
    return [f"{files[f]}/{name or f'row {i}'}" for i, (f, name) in enumerate(named)]

  def sizes(self) -> bytes:
    """Returns the number of rows and of bytes of each group."""
    both = np.stack([np.diff(self._starts), self._sizes]).astype("<i8")
    content: bytes = both.tobytes()
    return content

  def read(self, record: int) -> bytes:
    """Returns the content of an image file, or raises `ImageError`."""
    number = self._group_of(record)
    try:
      image = self._group(number)[record - int(self._starts[number])].as_py()
    except Exception as error:  # pyarrow raises errors of many types.
      raise ImageError(f"it cannot be read ({error})") from error
    if image is None:
      raise ImageError("it has no bytes; its file must be in the parquet file")
    content: bytes = image
    return content

  def _group(self, number: int) -> "pyarrow.BinaryArray":
    """Returns the images of a group of rows."""
    with self._lock:
      lock = self._group_locks[number]
    with lock:
      with self._lock:
        if number in self._cache:
          self._cache.move_to_end(number)
          return self._cache[number]
      images = self._read_group(*self._groups[number])
      with self._lock:
        self._cache[number] = images
        self._cached_bytes += images.nbytes
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
          self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
      return images

  def _read_group(self, file: int, group: int) -> "pyarrow.BinaryArray":
    from pyarrow import parquet

    # Several threads must not use one object.
    opened = self._files.__dict__.setdefault("opened", {})
    if file not in opened:
      if len(opened) >= _OPEN_FILES:
        opened.clear()
      opened[file] = parquet.ParquetFile(self._paths[file], memory_map=True)
    table = opened[file].read_row_group(
      group, columns=[self._column], use_threads=False
    )
    chunks = table.column(0)
    images = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    return images.field("bytes") if self._is_struct else images
