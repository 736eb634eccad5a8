"""A lock that lets one process at a time use a directory."""

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from resnet_jax.runs.bucket_lock import BucketLock
from resnet_jax.runtime.buckets import BucketPath, storage_path
from resnet_jax.runtime.errors import UserError

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None  # type: ignore[assignment]

Check = Callable[[], None]

# Errors of file systems without locks, such as some network file systems.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextlib.contextmanager
def hold(directory: str | Path, name: str, patience_s: float = 0.0) -> Iterator[Check]:
  """Keeps other processes from a directory until the end of the context.

  The operating system holds the lock, and releases it however the process ends. In a
  bucket the lock expires, see `BucketLock`. There is no lock on file systems without
  locks, and on Windows.

  Args:
    directory: the directory; it is created if it does not exist.
    name: the user's name for the directory, for the message.
    patience_s: how long to wait for another process that holds the lock; not for a
      bucket.

  Yields:
    A function that raises `OSError` if another process has taken the lock.

  Raises:
    UserError: another process holds the lock, or `directory` is a file.
  """
  path = storage_path(directory)
  if isinstance(path, BucketPath):
    with BucketLock(path, name) as lock:
      yield lock.check
    return
  if path.exists() and not path.is_dir():
    raise UserError(f"{name} is a file; name a directory")
  path.mkdir(parents=True, exist_ok=True)
  if fcntl is None:
    yield no_check
    return
  with Path(directory, "lock").open("a+") as file:
    end = time.monotonic() + patience_s
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if time.monotonic() < end:
          time.sleep(0.5)
          continue
        raise UserError(
          f"{name} is in use by another process that trains there; wait for its end or "
          "name another directory"
        ) from None
      except OSError as error:
        if error.errno not in _NO_LOCKS:
          raise
      break
    yield no_check


def no_check() -> None:
  """The operating system takes no lock away."""
