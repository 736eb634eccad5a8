"""Remembers in the run directory which metrics a tracker has.

A run that is resumed repeats the steps after its checkpoint. A tracker gets each line
of `metrics.jsonl` once, also one that a dead server did not take. Only a killed run
sends some lines twice.
"""

import json

from etils import epath

from resnet_jax.config.validation import has_type
from resnet_jax.runs.run_dir import write_file
from resnet_jax.runtime.errors import UserError


class Progress:
  """The last step that was sent to a tracker, and its splits."""

  def __init__(self, path: epath.Path):
    """Reads the file, which need not exist.

    Raises:
      UserError: the file is damaged.
    """
    self._path = path
    self._step, self._splits = self._before = _read(path) if path.exists() else (-1, ())

  def had(self, step: int, split: str) -> bool:
    """Whether an earlier try of the run has sent these metrics."""
    last, splits = self._before
    return step < last or (step == last and split in splits)

  def add(self, step: int, split: str) -> None:
    """Notes that metrics were sent; raises `OSError` if it cannot be written."""
    splits = self._splits if step == self._step else ()
    self._step, self._splits = step, (*splits, split)
    write_file(self._path, json.dumps({"step": step, "splits": self._splits}) + "\n")


def _read(path: epath.Path) -> tuple[int, tuple[str, ...]]:
  try:
    values = json.loads(path.read_text())
    step, splits = values["step"], tuple(values["splits"])
    if not has_type(step, int) or not has_type(splits, tuple[str, ...]):
      raise ValueError("a value of another type")
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise UserError(
      f"{path} is damaged: {error}; delete {path.parent} to begin new runs in the "
      "trackers"
    ) from error
  return step, splits
