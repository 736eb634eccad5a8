"""A lock that lets one process at a time use a directory."""

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from resnet_jax.runtime.errors import UserError

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None  # type: ignore[assignment]

# Errors of file systems without locks, such as some network file systems.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextlib.contextmanager
def hold(directory: str | Path, name: str, patience_s: float = 0.0) -> Iterator[None]:
  """Keeps other processes from a directory until the end of the context.

  The operating system holds the lock, and releases it however the process ends. There
  is no lock on remote storage, on file systems without locks, and on Windows.

  Args:
    directory: the directory; it is created if it does not exist.
    name: the user's name for the directory, for the message.
    patience_s: how long to wait for another process that holds the lock.

  Raises:
    UserError: another process holds the lock, or `directory` is a file.
  """
  path = epath.Path(directory)
  if path.exists() and not path.is_dir():
    raise UserError(f"{name} is a file; name a directory")
  path.mkdir(parents=True, exist_ok=True)
  if fcntl is None or "://" in str(directory):
    yield
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
    yield
