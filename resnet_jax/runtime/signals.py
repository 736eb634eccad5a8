"""Ends a run early without loss: a signal becomes a request to stop."""

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

from resnet_jax.runtime.interruption import (
  act_before_exit,
  exit_now,
  note_interruption,
  stopped_status,
)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Time for the main thread to respond by itself.
_PATIENCE_S = 0.5
_END = b"\0"  # No signal has this number.
_SHOW_CURSOR = "\x1b[?25h"  # A progress bar hides it.


class Stopped(Exception):  # noqa: N818 - nothing went wrong.
  """Training ended early on request; its state is saved.

  Attributes:
    step: number of completed updates.
  """

  def __init__(self, step: int):
    super().__init__(f"stopped after step {step}")
    self.step = step


class StopRequest:
  """Treats the first SIGINT or SIGTERM as a request; the second ends the process.

  This is a context manager. It prints immediately that it received a signal, even while
  the devices compute. If JAX connects several processes, a signal to one of them stops
  all after the same step; they agree on this step through JAX's preemption notice. A
  second SIGTERM then ends a process only after this agreement. Outside of the main
  thread, Python receives no signals, so there is never a request.
  """

  def __init__(self) -> None:
    self._asked, self._calls = False, 0
    # The `step` and `may_exit` of the context `interrupting`.
    self._saved: int | None = None
    self._may_exit = False
    self._before: dict[int, object] = {}

  def __enter__(self) -> "StopRequest":
    if threading.current_thread() is not threading.main_thread():
      return self
    # Python runs a handler only when the main thread returns from the devices. This may
    # take minutes; another thread can read the signal from a pipe immediately.
    self._read_end, self._write_end = os.pipe()
    os.set_blocking(self._write_end, False)
    self._pipe_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._listener.start()
    # If processes are connected, JAX itself handles SIGTERM.
    taken = _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
    self._before = {number: signal.signal(number, self._ask) for number in taken}
    return self

  def __exit__(self, *exc_info: object) -> None:
    if not self._before:
      return
    for number, handler in self._before.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    signal.set_wakeup_fd(self._pipe_before)
    # A forked process may keep the pipe open, so closing it would not end the listener.
    os.write(self._write_end, _END)
    self._listener.join()
    os.close(self._write_end)
    os.close(self._read_end)
    if jax.process_count() > 1:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)  # No step is left to finish.

  def is_asked(self) -> bool:
    """Whether to stop now.

    All processes must call this equally often. They all get the same answer.
    """
    if jax.process_count() > 1:
      self._calls += 1  # JAX needs consecutive steps; a gap could skip the agreed one.
      if not multihost_utils.reached_preemption_sync_point(self._calls):
        return False
      for number in _SIGNALS if self._before else ():
        # JAX's handler would ignore a second signal.
        signal.signal(number, signal.SIG_DFL)
      return True
    return self._asked

  @contextlib.contextmanager
  def interrupting(self, step: int, may_exit: bool = False) -> Iterator[None]:
    """Returns a context in which a request raises `Stopped` immediately.

    Use it where an interruption loses nothing. With several processes, none is
    interrupted, as the others would wait for it.

    Args:
      step: number of completed updates; their state is saved or is being written.
      may_exit: whether the process may end immediately during a long compilation,
        because nothing is being written.

    Raises:
      Stopped: there was a request, before or within the context.
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
    """The signal handler, which Python runs when the main thread is free."""
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
    """Prints that a signal was received, and ends a process that cannot respond."""
    told = False
    while (read := os.read(self._read_end, 1)) != _END:
      if (number := read[0]) not in self._before:
        continue
      if told:  # The main thread has not returned to Python yet.
        os._exit(128 + number)
      told = True
      name, may_exit = signal.Signals(number).name, self._may_exit
      what = (
        "there is nothing to save" if may_exit else "stopping after the step is saved"
      )
      _say(f"\n{name}: {what}; a second signal ends the run at once\n")
      if may_exit:
        time.sleep(_PATIENCE_S)
        if self._may_exit:  # The main thread still compiles.
          act_before_exit(was_stopped=True)
        if self._may_exit:
          _say(_SHOW_CURSOR if sys.stderr.isatty() else "")
          os._exit(stopped_status())


@contextlib.contextmanager
def stopped_by_sigterm(step: int) -> Iterator[None]:
  """Within the context, SIGTERM stops a run whose last state is saved.

  By default SIGTERM ends a process without its cleanup. In one of several processes,
  the others notice that it is gone. Outside of the main thread nothing changes.

  Args:
    step: number of completed updates.

  Raises:
    Stopped: there was a SIGTERM.
  """

  def end(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)
    if jax.process_count() > 1:
      exit_now(128 + number, was_stopped=True)
    raise Stopped(step)

  is_main = threading.current_thread() is threading.main_thread()
  if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
    yield
    return
  signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _say(text: str) -> None:
  os.write(sys.stderr.fileno(), text.encode())  # The signal may interrupt `print`.
