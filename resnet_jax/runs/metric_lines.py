"""Reads and writes `metrics.jsonl`, which has one JSON object per line."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from resnet_jax.config.validation import has_type
from resnet_jax.runs.run_dir import write_file
from resnet_jax.runtime.buckets import storage_path
from resnet_jax.runtime.errors import UserError, naming

_PLACE = ("step", "epoch", "split")  # Each line has these, besides its metrics.


class MetricLines:
  """Writes the `metrics.jsonl` of a run; a metric sink and a context manager.

  Attributes:
    records: the lines of the file.
  """

  def __init__(
    self,
    folder: epath.Path,
    steps_per_epoch: int,
    start_step: int,
    evaluates_first: bool = False,
  ):
    """Opens the file; drops lines that an earlier try wrote after `start_step`.

    Args:
      folder: the run directory, or a local copy of one in a bucket.
      steps_per_epoch: number of updates per epoch.
      start_step: completed updates.
      evaluates_first: whether the run starts with the evaluation of `start_step`; lines
        that an earlier try wrote about it are then dropped too.

    Raises:
      UserError: a line is damaged.
    """
    self._path = folder / "metrics.jsonl"
    self._steps_per_epoch = steps_per_epoch
    self.records = self._drop_later_lines(start_step, evaluates_first)
    self._file = self._path.open("a")

  def __enter__(self) -> "MetricLines":
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._file.close()

  def _drop_later_lines(self, step: int, evaluates_first: bool) -> list[dict[str, Any]]:
    if not self._path.exists():
      return []
    records = []
    # A kill can leave half a last line.
    *lines, last = self._path.read_bytes().split(b"\n")
    for record in parse_lines(self._path, lines):
      is_due = evaluates_first and record["split"] != "train"
      if record["step"] < step or (record["step"] == step and not is_due):
        records.append(record)
    if last or len(records) < len(lines):
      text = "".join(json.dumps(record) + "\n" for record in records)
      write_file(self._path, text)
    return records

  def logged(self) -> Iterator[tuple[int, str, dict[str, float]]]:
    """Yields the arguments of `log` for each line."""
    for record in self.records:
      values = {key: value for key, value in record.items() if key not in _PLACE}
      yield record["step"], record["split"], values

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Adds a line; raises `OSError` if it cannot be written."""
    epoch = round(step / self._steps_per_epoch, 4)
    record = {"step": step, "epoch": epoch, "split": split, **values}
    self.records.append(record)
    line = json.dumps(record, allow_nan=False) + "\n"
    with naming(self._path):
      self._file.write(line)
      self._file.flush()


def parse_lines(path: os.PathLike[str], lines: Iterable[bytes]) -> list[dict[str, Any]]:
  """Returns the records of complete lines.

  Args:
    path: path of the file, for messages.
    lines: the lines of the file.

  Raises:
    UserError: a line is not a record with split, step, epoch, loss and other numbers.
  """
  records = []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line.decode())
      kinds = {"step": int, "split": str, "epoch": float, "loss": float}
      if not all(has_type(record[key], kind) for key, kind in kinds.items()) or not all(
        has_type(record[key], float) for key in record if key not in kinds
      ):
        raise ValueError("a value of another type")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      text = line[:40].decode(errors="replace")
      raise UserError(
        f"{path} is damaged in line {number}, {text!r}; delete the line"
      ) from error
    records.append(record)
  return records


def read_records(workdir: str | Path) -> list[dict[str, Any]]:
  """Returns the records in the complete lines of the `metrics.jsonl` of a run.

  Raises:
    UserError: a line is damaged.
  """
  path = storage_path(workdir) / "metrics.jsonl"
  if not path.exists():
    return []
  *lines, _ = path.read_bytes().split(b"\n")
  return parse_lines(path, lines)
