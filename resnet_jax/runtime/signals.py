"""Ending a run early with nothing lost: a signal becomes a request to stop."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from resnet_jax.runtime.interruption import note_interruption

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# For the main thread to come back by itself.
_PATIENCE_S = 0.5
_END = b"\0"  # The number of no signal.
_SHOW_CURSOR = "\x1b[?25h"  # A progress bar hides it.


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

  A context manager. It says at once that it has seen a signal, even while the devices
  compute. Where JAX connects several processes, a signal to one of them stops all of
  them after the same step, on which they agree by JAX's preemption notice. A second
  SIGTERM ends a process only when all have agreed. Outside of the main thread, where
  Python takes no signals, a `StopRequest` is never asked.
  """

  def __init__(self) -> None:
    self._asked, self._calls = False, 0
    # Of the context `interrupting`: the step, and whether the process may just end.
    self._saved: int | None = None
    self._may_exit = False
    self._before: dict[int, object] = {}

  def __enter__(self) -> "StopRequest":
    if threading.current_thread() is not threading.main_thread():
      return self
    # Python runs a handler once the main thread is back from the devices, which may
    # take minutes; another thread reads at once what arrives in a pipe.
    self._read_end, self._write_end = os.pipe()
    os.set_blocking(self._write_end, False)
    self._pipe_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._listener.start()
    # JAX itself listens to SIGTERM where processes are connected.
    taken = _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
    self._before = {number: signal.signal(number, self._ask) for number in taken}
    return self

  def __exit__(self, *exc_info: object) -> None:
    if not self._before:
      return
    for number, handler in self._before.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    signal.set_wakeup_fd(self._pipe_before)
    os.write(self._write_end, _END)  # Not closed, as a forked process may have it too.
    self._listener.join()
    os.close(self._write_end)
    os.close(self._read_end)
    if jax.process_count() > 1:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)  # There is no step to finish.

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

  @contextlib.contextmanager
  def interrupting(self, step: int, may_exit: bool = False) -> Iterator[None]:
    """Within the context a request raises `Stopped`, as nothing is lost by that.

    Of several processes none is interrupted, as the others would wait for it.

    Args:
      step: completed updates, whose state is saved or is being written.
      may_exit: nothing is being written, so that the process may end at once where it
        compiles for long.

    Raises:
      Stopped: it was asked for, before or within the context.
    """
    if jax.process_count() > 1:
      yield
      return
    self._saved, self._may_exit = step, may_exit
    try:
      if self._asked:
        raise Stopped(step)
      yield
    finally:
      self._saved, self._may_exit = None, False

  def _ask(self, number: int, frame: FrameType | None) -> None:
    """What Python runs in the main thread, once that is free."""
    del number, frame
    for taken in self._before:
      signal.signal(taken, signal.SIG_DFL)
    self._asked = True
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    if self._saved is not None:
      note_interruption()
      raise Stopped(self._saved)

  def _listen(self) -> None:
    """Says that a signal was seen, and ends a process that cannot answer."""
    told = False
    while (read := os.read(self._read_end, 1)) != _END:
      if (number := read[0]) not in self._before:
        continue
      if told:  # The main thread is not back yet, so that Python still takes it.
        os._exit(128 + number)
      told = True
      name, may_exit = signal.Signals(number).name, self._may_exit
      what = (
        "there is nothing to save" if may_exit else "the step is finished and saved"
      )
      _say(f"\n{name}: {what}; once more ends at once\n")
      if may_exit:
        time.sleep(_PATIENCE_S)
        if self._may_exit:  # The main thread still compiles.
          _say(_SHOW_CURSOR if sys.stderr.isatty() else "")
          os._exit(0)


def _say(text: str) -> None:
  os.write(sys.stderr.fileno(), text.encode())  # `print` may be what was interrupted.
