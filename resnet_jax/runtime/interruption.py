"""Ends a process after a signal interrupted a computation."""

import multiprocessing
import os
import sys
from typing import NoReturn

_interrupted = False
# Exit status of a process that ends because a signal stopped its run.
_stopped_status = 0


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
  os._exit(status)
