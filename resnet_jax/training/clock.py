"""Measures where the time of a run goes: training, waiting for images, other work."""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import jax

from resnet_jax.runs.time_shares import Lap

T = TypeVar("T")


class Clock:
  """Times the training calls without making the devices wait. A context manager.

  The training loop wraps its data in `waiting`, and calls `dispatched` after each
  training call and `start` after anything that is not training. Work in `timed` counts
  under its own name, all other time before a `start` as "other".
  """

  def __init__(self) -> None:
    """Starts to measure."""
    self._watcher = futures.ThreadPoolExecutor(1, "clock")
    self._idle_since: futures.Future[float] | None = None
    # For each call that `lap` has not returned: its end, the wait for its images, and
    # the seconds of each other activity before it.
    self._calls: deque[tuple[futures.Future[float], float, dict[str, float]]] = deque()
    self._mark, self._waited = time.monotonic(), 0.0
    # Seconds of other activities since the last `start`, and since the last call.
    self._pause: dict[str, float] = defaultdict(float)
    self._others: dict[str, float] = defaultdict(float)

  def __enter__(self) -> "Clock":
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._watcher.shutdown(wait=False)

  def start(self) -> None:
    """Counts time as training from now on. All calls must have been returned by `lap`.

    The time before the first call, such as that of its compilation, is not counted.
    """
    now = time.monotonic()
    if self._idle_since is not None:
      known = sum(self._pause.values())
      self._pause["other"] = max(0.0, now - self._mark - known)
      for activity, seconds in self._pause.items():
        self._others[activity] += seconds
    self._pause.clear()
    self._mark, self._waited = now, 0.0

  @contextlib.contextmanager
  def timed(self, activity: str) -> Iterator[None]:
    """Times work that is not training, under a name of `ACTIVITIES`; traces name it."""
    began = time.monotonic()
    with jax.profiler.TraceAnnotation(activity):
      yield
    self._pause[activity] += time.monotonic() - began

  def waiting(self, items: Iterable[T]) -> Iterator[T]:
    """Yields the items; measures how long the devices are idle until each comes."""
    iterator = iter(items)
    try:
      while True:
        asked = time.monotonic()
        try:
          item = next(iterator)
        except StopIteration:
          return
        idle = self._idle_since
        if idle is not None and idle.done() and idle.exception() is None:
          self._waited += max(0.0, time.monotonic() - max(asked, idle.result()))
        yield item
    finally:
      if isinstance(iterator, Generator):  # It may hold threads and processes.
        iterator.close()

  def dispatched(self, result: Any) -> None:
    """Records a call that the devices now compute.

    Args:
      result: the result of the call, a tree of arrays.
    """
    self._idle_since = self._watcher.submit(_time_when_ready, result)
    self._calls.append((self._idle_since, self._waited, self._others))
    self._waited, self._others = 0.0, defaultdict(float)

  def lap(self) -> Lap:
    """Waits for the end of the oldest call that no `lap` has returned yet.

    The result is the same if `lap` is called late, even after the next call has ended.
    """
    end, waited, others = self._calls.popleft()
    seconds = end.result() - self._mark
    self._mark += seconds
    return Lap(seconds, waited, others)


def _time_when_ready(result: Any) -> float:
  jax.block_until_ready(result)
  return time.monotonic()
