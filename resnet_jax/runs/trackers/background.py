"""Calls a tracker in a thread, so that a slow or dead server delays no step."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from resnet_jax.runs.trackers.progress import Progress
from resnet_jax.runs.trackers.tracker import (
  Status,
  TrackedRun,
  Tracker,
  TrackerFactory,
)
from resnet_jax.runtime.errors import describe_error
from resnet_jax.runtime.terminal import show, warn

_RETRY_AFTER_S = 60.0
# W&B may lose the metrics of the last 15 s when a run is killed.
_SAFE_AFTER_S = 30.0
# A scheduler kills a run soon after it asked the run to stop.
_PATIENCE_S = 10.0


class BackgroundTracker:
  """A tracker whose `log` returns immediately and never fails.

  If the tracker fails, one warning says so, and the metrics wait. They are sent again
  every minute, in their order. All calls, including the factory's, come from one
  thread. If the run is killed, its next try sends the metrics of the last 30 s again.
  """

  def __init__(
    self, name: str, factory: TrackerFactory, run: TrackedRun, progress: Progress
  ):
    """Starts the tracker.

    Args:
      name: name of the tracker in messages.
      factory: starts it; its exceptions are raised here.
      run: argument of the factory.
      progress: says which metrics an earlier try of the run has sent.
    """
    self._name, self._progress = name, progress
    self._lines: queue.SimpleQueue[tuple[int, str, Mapping[str, float]] | None]
    self._lines = queue.SimpleQueue()
    # (time in seconds, step, split) of metrics that were sent in the last 30 s.
    self._new: deque[tuple[float, int, str]] = deque()
    self._is_ending = threading.Event()
    self._end: tuple[Status, Mapping[str, Path]] = "failed", {}
    started: Future[None] = Future()
    self._thread = threading.Thread(
      target=self._work, args=(factory, run, started), daemon=True
    )
    self._thread.start()
    started.result()

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Sends metrics in the background, unless an earlier try has sent them.

    A run that was killed and resumed repeats steps; their metrics are the same.
    """
    if not self._progress.had(step, split):
      self._lines.put((step, split, values))

  def finish(self, status: Status, files: Mapping[str, Path]) -> None:
    """Begins to send what is left and to finish the tracker; see `wait`.

    After a failure it tries once more. A second call does nothing.
    """
    if not self._is_ending.is_set():
      self._end = status, files
      self._lines.put(None)
      self._is_ending.set()

  def wait(self, until: float) -> None:
    """Waits for the end of `finish`.

    Args:
      until: a time of `time.monotonic`. After it, a run that was stopped or failed
        waits no longer, and a finished one says that it still waits for its upload.
    """
    self._thread.join(max(0.0, until - time.monotonic()))
    if not self._thread.is_alive():
      return
    if self._end[0] != "finished":
      warn(
        f"{self._name} did not take the last metrics in time; metrics.jsonl has them"
      )
      return
    show(
      f"waiting for {self._name} to take the files of the run, which is complete and "
      "saved; Ctrl-C ends it without them"
    )
    self._thread.join()

  def _work(
    self, factory: TrackerFactory, run: TrackedRun, started: "Future[None]"
  ) -> None:
    try:
      tracker = factory(run)
    except BaseException as error:
      started.set_exception(error)
      return
    started.set_result(None)
    lost = 0
    for line in iter(self._lines.get, None):
      if lost or not self._send(tracker, *line):
        lost += 1
    if lost:
      warn(
        f"{self._name} has not received the end of metrics.jsonl ({lost} lines); start "
        "the same command again to send it"
      )
    try:
      tracker.finish(*self._end)
    except Exception as error:  # The programs of others may raise anything.
      warn(f"{self._name} fails at the end of the run: {describe_error(error)}")
    else:
      self._note_safe(0.0)

  def _note_safe(self, after_s: float) -> None:
    """Notes the metrics that were sent so many seconds ago."""
    with contextlib.suppress(OSError):  # Of a full disk, which the run notices.
      while self._new and self._new[0][0] <= time.monotonic() - after_s:
        _, step, split = self._new.popleft()
        self._progress.add(step, split)

  def _send(
    self, tracker: Tracker, step: int, split: str, values: Mapping[str, float]
  ) -> bool:
    """Sends one line; returns False if this fails until the run ends."""
    has_failed = False
    while True:
      is_last_try = self._is_ending.is_set()
      try:
        tracker.log(step, split, values)
      except Exception as error:
        if not has_failed:
          warn(
            f"{self._name} fails at step {step}: {describe_error(error)}; the run "
            "continues and sends the metrics again every minute"
          )
        has_failed = True
      else:
        self._new.append((time.monotonic(), step, split))
        self._note_safe(_SAFE_AFTER_S)
        if has_failed:
          show(f"{self._name} works again; no metrics are missing")
        return True
      if is_last_try:
        return False
      self._is_ending.wait(_RETRY_AFTER_S)


def finish_all(
  trackers: Sequence[BackgroundTracker],
  status: Status,
  files: Mapping[str, Path],
  patience_s: float | None = None,
) -> None:
  """Finishes all trackers at the same time, and waits for them.

  Args:
    trackers: a tracker that is already finishing keeps its status and files.
    status: how the run ended.
    files: see `Tracker.finish`.
    patience_s: how long a run that was stopped or failed waits; None is 10 s.
  """
  for tracker in trackers:
    tracker.finish(status, files)
  until = time.monotonic() + (_PATIENCE_S if patience_s is None else patience_s)
  for tracker in trackers:
    tracker.wait(until)
