"""The files that a run adds to while it trains: metrics, TensorBoard, curves.

A bucket cannot append to a file. For a run in a bucket they are written to a temporary
folder, and copied now and then.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from etils import epath

from resnet_jax.runtime.buckets import BucketPath, storage_path

_AT_MOST = 0.02  # Fraction of the run's time that copying may take.
_AT_LEAST_S = 10.0  # Between two copies.


class Outbox:
  """A folder on this machine; a context manager.

  Attributes:
    folder: the run directory, or the temporary folder.
  """

  def __init__(self, workdir: str | Path, *names: str):
    """Takes the files that a resumed run continues; they are copied from a bucket."""
    stored = storage_path(workdir)
    self._bucket = stored if isinstance(stored, BucketPath) else None
    self._temporary = TemporaryDirectory(prefix="resnet_jax_") if self._bucket else None
    self.folder = epath.Path(self._temporary.name) if self._temporary else stored
    self._sent: dict[str, tuple[int, int]] = {}  # Name -> size and time of change.
    self._sent_at, self._seconds = time.monotonic(), 0.0
    if self._bucket:
      self._bucket.download(self.folder, names)

  def __enter__(self) -> "Outbox":
    return self

  def __exit__(self, *exc_info: object) -> None:
    if self._temporary:
      self._temporary.cleanup()

  def send(self, may_wait: bool = False) -> None:
    """Copies the files that have changed.

    Args:
      may_wait: do nothing if the last copy was a short time ago.

    Raises:
      OSError: the bucket cannot be written to. The next call tries again.
    """
    if self._bucket is None:
      return
    began = time.monotonic()
    pause = max(_AT_LEAST_S, self._seconds / _AT_MOST)
    if may_wait and began - self._sent_at < pause:
      return
    found = {}
    for folder, _, files in self.folder.walk():
      for path in (folder / file for file in files):
        info = Path(path).stat()
        found[str(path.relative_to(self.folder))] = info.st_size, info.st_mtime_ns
    self._bucket.upload(
      self.folder, [name for name in found if found[name] != self._sent.get(name)]
    )
    self._sent, self._sent_at = found, time.monotonic()
    self._seconds = self._sent_at - began
