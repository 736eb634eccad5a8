"""TensorBoard's event file of a run."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from etils import epath

from resnet_jax.runtime.errors import naming

if TYPE_CHECKING:
  import tensorboardX

_FLUSH_EVERY_S = 30


class Board:
  """Writes numbers for TensorBoard; a metric sink and a context manager.

  tensorboardX's `SummaryWriter` is not used: its thread ends at the first error, such
  as a full disk, and the run would then wait forever to write the next number.
  """

  def __init__(self, directory: epath.Path, start_step: int):
    """Opens a new event file. TensorBoard hides older values after `start_step`."""
    tensorboard = _import_tensorboard()
    self._proto, self._scalar = tensorboard.proto.event_pb2, tensorboard.summary.scalar
    writer, self._directory = tensorboard.event_file_writer, directory
    writer.directory_check(str(directory))
    self._file = writer.EventsWriter(str(directory / "events"))
    self._flushed = time.monotonic()
    log = self._proto.SessionLog(status=self._proto.SessionLog.START)
    self._write(start_step + 1, session_log=log)

  def __enter__(self) -> "Board":
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._file.close()

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Adds numbers, such as "train/loss"; raises `OSError` as `add_scalar`."""
    with naming(self._directory):
      for name, value in values.items():
        self.add_scalar(f"{split}/{name}", value, step)

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """Adds a number; raises `OSError` if it cannot be written."""
    self._write(step, summary=self._scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_EVERY_S:
      self._file.flush()
      self._flushed = time.monotonic()

  def _write(self, step: int, **content: object) -> None:
    event = self._proto.Event(wall_time=time.time(), step=step, **content)
    self._file.write_event(event)


def _import_tensorboard() -> "tensorboardX":
  # If PyTorch is installed, tensorboardX imports all of it, which takes seconds, only
  # to tell PyTorch's tensors from other arrays.
  hidden = "torch" not in sys.modules
  if hidden:
    sys.modules["torch"] = None  # type: ignore[assignment]
  try:
    import tensorboardX
    import tensorboardX.event_file_writer
  finally:
    if hidden:
      del sys.modules["torch"]
  return tensorboardX
