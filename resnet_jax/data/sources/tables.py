"""Images listed in a table of paths and labels."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.data.sources.base import (
  EVAL_SPLITS,
  is_number,
  is_validation,
  plain_number,
)
from resnet_jax.data.sources.file_list import (
  _MAX_CLASSES,
  FileList,
  _check_known,
  is_image,
)
from resnet_jax.data.sources.stored_labels import number_names
from resnet_jax.runtime.errors import UserError

# Kind of label -> the column of a table that may be empty.
_MAY_BE_EMPTY = {"classes": "label"}


class _Row(NamedTuple):
  line: int
  path: str
  label: str
  split: str  # In lower case; "" if the table has no column "split".


def _read_table(path: Path, labels: str = "class") -> list[_Row]:
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      reader = csv.reader(file)
      rows = [(reader.line_num, row) for row in reader if row]
  except (UnicodeDecodeError, csv.Error) as error:
    raise UserError(
      f"{path} is no .csv file in UTF-8: {error}; name a folder of images or a .csv "
      "file of path,label, and unpack archives first"
    ) from error
  columns = ["path", "label"]
  if rows:
    header = [cell.strip().lower() for cell in rows[0][1]]
    has_header = "path" in header or "label" in header
    if has_header:
      columns, rows = header, rows[1:]
  if not {"path", "label"} <= set(columns):
    raise UserError(f"{path}, line 1: {','.join(columns)!r} must name path and label")
  if any(columns.count(name) > 1 for name in ("path", "label", "split")):
    raise UserError(f"{path}, line 1: {','.join(columns)!r} names a column twice")
  if not rows:
    raise UserError(f"{path} has no rows of path,label")
  # An image may have none of several classes.
  filled = ({"path", "label", "split"} & set(columns)) - {_MAY_BE_EMPTY.get(labels)}
  table = []
  for line, row in rows:
    cells = dict(zip(columns, row, strict=False))
    if len(row) != len(columns) or not all(cells[name].strip() for name in filled):
      raise UserError(
        f"{path}, line {line}: {','.join(row)[:60]!r} must be {','.join(columns)}; "
        "other columns need a first line that names path and label"
      )
    split = cells.get("split", "").strip().lower()
    table.append(_Row(line, cells["path"], cells["label"].strip(), split))
  first = table[0]
  named = is_image(first.path) or os.path.isfile(path.parent / first.path)
  if not has_header and not named:
    raise UserError(
      f"{path}, line {first.line}: {first.path[:60]!r} is no file; a first line that "
      "names the columns must call them path and label"
    )
  return table


def _list_table(
  path: Path,
  split: str,
  val_share: float,
  class_names: Sequence[str],
  kind: str = "class",
) -> FileList:
  rows = _read_table(path, kind)
  _check_rows(path, rows)
  labels: Sequence[int] | np.ndarray
  if kind == "classes":
    labels, classes = _several_classes(path, rows, class_names)
  elif kind == "numbers":
    labels, classes = _numbers(path, rows)
  else:
    labels, classes = _one_class(path, rows, class_names)
  files = FileList(path.parent, [row.path for row in rows], labels, classes)
  if rows[0].split:
    return files.select([row.split == split for row in rows])
  return _part(files, split, val_share)


def _several_classes(
  path: Path, rows: Sequence[_Row], class_names: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
  """Returns bool [N, K] and the class names of labels such as "cat;outdoor"."""
  every = [[text.strip() for text in row.label.split(";")] for row in rows]
  every = [[text for text in texts if text] for texts in every]
  found = {text for texts in every for text in texts}
  if not found:
    raise UserError(f"{path} has no label")
  is_number = all(text.isdecimal() and len(text) < 10 for text in found)
  classes = list(class_names) or sorted(found, key=int if is_number else None)
  number = {name: i for i, name in enumerate(classes)}
  _check_known(sorted(found), classes, path)
  labels = np.zeros((len(rows), len(classes)), bool)
  for texts, label in zip(every, labels, strict=True):
    label[[number[text] for text in texts]] = True
  return labels, classes


def _numbers(path: Path, rows: Sequence[_Row]) -> tuple[np.ndarray, list[str]]:
  """Returns float32 [N, K] and names of the numbers of labels such as "0.5;12"."""
  labels: list[list[float]] = []
  for row in rows:
    try:
      label = [float(text) for text in row.label.split(";")]
    except ValueError:
      label = []
    highest = float(np.finfo(np.float32).max)
    if not label or not all(abs(x) <= highest for x in label):  # NaN is neither.
      raise UserError(
        f"{path}, line {row.line}: label {row.label[:40]!r} must be one or several "
        "finite numbers, such as 0.5 or 0.5;12"
      )
    if len(label) != len(labels[0] if labels else label):
      raise UserError(
        f"{path}, line {row.line}: {row.label[:40]!r} are {len(label)} numbers, and "
        f"line {rows[0].line} has {len(labels[0])}; each image needs the same number"
      )
    labels.append(label)
  count = len(labels[0])
  return np.array(labels, np.float32), list(number_names(count))


def _one_class(
  path: Path, rows: Sequence[_Row], class_names: Sequence[str]
) -> tuple[list[int], list[str]]:
  """Returns the class indices and the class names of labels such as "cat" or "3"."""
  texts = [row.label for row in rows]
  if class_names and all(name.isdecimal() for name in class_names):
    # The classes are folders with names such as "0" to "11", sorted as text: 0, 1, 10,
    # 11, 2 ... A number in the table is then a class name, not an index.
    plain = (
      plain_number
      if len(set(map(plain_number, class_names))) == len(class_names)
      else str
    )
    texts, classes = list(map(plain, texts)), list(class_names)
    _check_known(texts, list(map(plain, classes)), path)
    number = {plain(name): i for i, name in enumerate(classes)}
    labels = [number[text] for text in texts]
  # If some class names are numbers, a number is never an index.
  elif all(text.removeprefix("-").isdecimal() for text in texts) and not any(
    map(is_number, class_names)
  ):
    limit = len(class_names) or _MAX_CLASSES
    for row in rows:
      if len(row.label) > 9 or not 0 <= int(row.label) < limit:
        raise UserError(
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
  return labels, classes


def _place(root: str, path: str) -> str:
  """Returns the normalised path of a file below an absolute root."""
  return os.path.normpath(os.path.join(root, path))


def _check_rows(path: Path, rows: Sequence[_Row]) -> None:
  """Raises `UserError` if a file has two labels, or is in training and evaluation."""
  root = os.path.abspath(path.parent)
  first_rows: dict[str, _Row] = {}
  for row in rows:
    first = first_rows.setdefault(_place(root, row.path), row)
    if first.label != row.label:
      raise UserError(
        f"{path}, line {row.line}: {row.path!r} has the label {row.label!r}, but "
        f"{first.label!r} in line {first.line}; remove one of the rows, or join "
        "several classes in one row, such as cat;outdoor"
      )
  trained = {_place(root, row.path): row.line for row in rows if row.split == "train"}
  for row in rows:
    line = trained.get(_place(root, row.path))
    if row.split in EVAL_SPLITS and line is not None:
      raise UserError(
        f"{path}, line {row.line}: {row.path!r} is in the split {row.split!r}, but in "
        f"'train' in line {line}; remove one of the rows"
      )


def _part(files: FileList, split: str, val_share: float) -> FileList:
  """Returns the "train" or "val" part of files that have no splits of their own."""
  # A table may name a file twice; then both rows are in the same part.
  names = list(map(files._relative, range(len(files))))
  root = os.path.abspath(files._root)
  paths = [_place(root, name) for name in names]
  unique: dict[str, int] = {}
  for i, path in enumerate(paths):
    unique.setdefault(path, i)
  first = list(unique.values())
  encoded = [os.fsencode(names[i]) for i in first]
  chosen = is_validation(encoded, files.labels[first], val_share)
  is_val = dict(zip(unique, chosen, strict=True))
  return files.select(np.array([is_val[path] for path in paths]) == (split == "val"))
