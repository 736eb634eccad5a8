"""A lock that lets one process at a time use a directory in a bucket.

The lock is a file that its owner renews until it ends. A file that is not renewed
belongs to a process that was killed, so another process may take it. This is weaker
than a lock of the operating system: a process that was stopped for longer than that
loses its lock while it still runs. So it checks the lock before each checkpoint.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time

from resnet_jax.runtime.buckets import BucketPath
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show

_RENEW_EVERY_S = 10.0
_EXPIRES_AFTER_S = 30.0


class BucketLock:
  """The lock of one directory; a context manager that holds it."""

  def __init__(self, directory: BucketPath, name: str):
    """Takes the user's name for the directory, for messages."""
    self._path, self._name = directory / "lock", name
    self._token, self._renewals = secrets.token_hex(8), 0
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)

  def __enter__(self) -> "BucketLock":
    while True:
      with contextlib.suppress(FileExistsError):
        self._path.write_bytes(self._content(), new=True)
        break
      self._delete_if_dead()
    self._thread.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._ended.set()
    self._thread.join()
    with contextlib.suppress(OSError):  # It expires by itself.
      if self._is_own():
        self._path.unlink()

  def check(self) -> None:
    """Raises `OSError` if another process has taken the lock."""
    if not self._is_own():
      raise OSError(
        f"{self._name} is now used by another process, because this one did not renew "
        f"its lock for {_EXPIRES_AFTER_S:.0f} s; nothing more is saved by this one"
      )

  def _content(self) -> bytes:
    self._renewals += 1
    values = {"token": self._token, "renewals": self._renewals, "pid": os.getpid()}
    values |= {"host": socket.gethostname(), "machine": _machine()}
    return json.dumps(values).encode()

  def _is_own(self) -> bool:
    return _read(self._path).get("token") == self._token

  def _renew(self) -> None:
    while not self._ended.wait(_RENEW_EVERY_S):
      with contextlib.suppress(OSError):  # The next try, or a save, may succeed.
        if not self._is_own():
          return
        self._path.write_bytes(self._content())

  def _delete_if_dead(self) -> None:
    """Deletes the lock of a process that has ended.

    Raises:
      UserError: the process is alive.
    """
    first = found = _read(self._path)
    if not _ended_here(first):
      show(
        f"{self._name} has a lock of {_owner(first)}: waiting up to "
        f"{_EXPIRES_AFTER_S:.0f} s to see whether that process is alive"
      )
      end = time.monotonic() + _EXPIRES_AFTER_S
      while found == first and time.monotonic() < end:
        time.sleep(_RENEW_EVERY_S / 10)
        found = _read(self._path)
    if found == first:
      self._path.unlink(missing_ok=True)
    elif found:
      raise UserError(
        f"{self._name} is in use by another process that trains there, "
        f"{_owner(found)}; wait for its end or name another directory"
      )


def _read(path: BucketPath) -> dict[str, object]:
  """Returns the content of a lock; {} if there is none."""
  try:
    found = json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except ValueError:
    found = None
  return found if isinstance(found, dict) else {"token": "unknown"}


def _owner(found: dict[str, object]) -> str:
  return f"process {found.get('pid')} on {found.get('host')}"


def _ended_here(found: dict[str, object]) -> bool:
  """Whether a lock belongs to a process of this machine that has ended."""
  pid = found.get("pid")
  if not _machine() or found.get("machine") != _machine() or not isinstance(pid, int):
    return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  except OSError:
    pass
  return False


def _machine() -> str:
  """Returns a name for this boot of the machine and this container; "" if unknown."""
  try:
    with open("/proc/sys/kernel/random/boot_id") as file:
      return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""
