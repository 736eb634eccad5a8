"""Measures the time of training, and the time that devices wait for images."""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import jax

T = TypeVar("T")


class Clock:
  """Times the training calls without making the devices wait. A context manager.

  The training loop wraps its data in `waiting`, and calls `dispatched` after each
  training call and `start` after anything that is not training.
  """

  def __init__(self) -> None:
    """Starts to measure."""
    self._watcher = futures.ThreadPoolExecutor(1, "clock")
    self._idle_since: futures.Future[float] | None = None
    # For each call that `lap` has not returned: its end, and the wait for its images.
    self._calls: deque[tuple[futures.Future[float], float]] = deque()
    self._mark, self._waited = time.monotonic(), 0.0

  def __enter__(self) -> "Clock":
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._watcher.shutdown(wait=False)

  def start(self) -> None:
    """Counts time as training from now on."""
    self._mark, self._waited = time.monotonic(), 0.0

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
    self._calls.append((self._idle_since, self._waited))
    self._waited = 0.0

  def lap(self) -> tuple[float, float]:
    """Waits for the end of the oldest call that no `lap` has returned yet.

    Returns:
      The seconds from the end of the previous call, or from the last `start`, to the
      end of this call, and how many of them the devices waited for its images. The
      result is the same if `lap` is called late, even after the next call has ended.
    """
    end, waited = self._calls.popleft()
    seconds = end.result() - self._mark
    self._mark += seconds
    return seconds, waited


def _time_when_ready(result: Any) -> float:
  jax.block_until_ready(result)
  return time.monotonic()
