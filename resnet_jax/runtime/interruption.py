"""How a process ends that a signal took out of a computation."""

import multiprocessing
import os
import sys
from typing import NoReturn

_interrupted = False


def note_interruption() -> None:
  """Remembers that a computation was left before its end."""
  global _interrupted
  _interrupted = True


def has_interrupted() -> bool:
  """Whether a computation was left before its end."""
  return _interrupted


def leave(status: int) -> NoReturn:
  """Ends the process without what Python does at its end.

  XLA may still compile what was interrupted, in a thread that crashes once XLA's client
  is gone.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(status)
