"""Reads `metrics.jsonl`."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resnet_jax.config.validation import has_type
from resnet_jax.runtime.buckets import storage_path
from resnet_jax.runtime.errors import UserError


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
