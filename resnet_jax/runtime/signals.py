"""Ending a run early with nothing lost: a signal becomes a request to stop."""

import os
import signal
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - nothing went wrong.
  """Training ended early because it was asked to; its state is saved.

  Attributes:
    step: completed updates.
  """

  def __init__(self, step: int):
    super().__init__(f"stopped after step {step}")
    self.step = step


class StopRequest:
  """Takes the first SIGINT or SIGTERM for a request; the second ends the process.

  A context manager. Of several processes that JAX connects, a signal to one of them
  stops all after the same step: SIGTERM by JAX's preemption notice, SIGINT likewise.
  There a second SIGTERM ends the process once all have agreed on the step.
  Outside of the main thread, where Python takes no signals, nothing is asked for.
  """

  def __init__(self) -> None:
    self._asked, self._calls = False, 0
    self._before: dict[int, object] = {}

  def __enter__(self) -> "StopRequest":
    if threading.current_thread() is threading.main_thread():
      # JAX itself listens to SIGTERM where processes are connected.
      taken = _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
      self._before = {number: signal.signal(number, self._ask) for number in taken}
    return self

  def __exit__(self, *exc_info: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    if self._before and jax.process_count() > 1:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)  # There is no step to finish.

  def _ask(self, number: int, frame: FrameType | None) -> None:
    del frame
    for taken in self._before:
      signal.signal(taken, signal.SIG_DFL)
    self._asked = True
    name = signal.Signals(number).name
    text = f"\n{name}: the step is finished and saved; once more ends at once\n"
    os.write(sys.stderr.fileno(), text.encode())  # `print` may be what it interrupts.
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)

  def is_asked(self) -> bool:
    """Whether to stop now; all processes ask equally often, and get the same answer."""
    if jax.process_count() > 1:
      self._calls += 1  # Steps with gaps would pass by the one that is agreed on.
      if not multihost_utils.reached_preemption_sync_point(self._calls):
        return False
      for number in _SIGNALS if self._before else ():
        signal.signal(number, signal.SIG_DFL)  # JAX's handler would take no second one.
      return True
    return self._asked
