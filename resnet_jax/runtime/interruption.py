"""Ends a process after a signal interrupted a computation, or at once."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from resnet_jax.runtime import native_library

_interrupted = False
# Exit status of a process that ends because a signal stopped its run.
_stopped_status = 0

# See `before_exit`.
_last_acts: list[Callable[[bool], None]] = []


def set_stopped_status(status: int) -> None:
  """Sets the exit status of this process if a signal stops its run."""
  global _stopped_status
  _stopped_status = status


def stopped_status() -> int:
  """Returns the exit status of this process if a signal stops its run."""
  return _stopped_status


def note_interruption() -> None:
  """Remembers that a computation was interrupted."""
  global _interrupted
  _interrupted = True


def has_interrupted() -> bool:
  """Whether a computation was interrupted."""
  return _interrupted


def leave(status: int) -> NoReturn:
  """Ends the process without Python's cleanup.

  XLA may still be compiling the interrupted computation in a thread. This thread would
  crash during the cleanup, once XLA's client is gone.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  for child in multiprocessing.active_children():
    child.terminate()
  native_library.stop()
  os._exit(status)


@contextlib.contextmanager
def before_exit(act: Callable[[bool], None]) -> Iterator[None]:
  """Within the context, `act_before_exit` calls `act`.

  Args:
    act: called with whether a signal stopped the run; else it failed. It must return
      soon. It may be called in any thread, also while the context ends.
  """
  _last_acts.append(act)
  try:
    yield
  finally:
    _last_acts.remove(act)


def act_before_exit(was_stopped: bool) -> None:
  """Calls what `before_exit` was given, such as the end of the trackers."""
  for act in tuple(_last_acts):
    with contextlib.suppress(Exception):
      act(was_stopped)


def exit_now(status: int, was_stopped: bool) -> NoReturn:
  """Ends the process from any thread, whatever its main thread does.

  Args:
    status: exit status.
    was_stopped: whether a signal stopped the run; else it failed.
  """
  act_before_exit(was_stopped)
  sys.stdout.flush()
  sys.stderr.flush()
  native_library.stop()
  os._exit(status)
