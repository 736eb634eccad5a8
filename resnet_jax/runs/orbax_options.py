"""Options of Orbax: no timeout, one message per error, and the best state is kept."""

import asyncio
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp

if TYPE_CHECKING:
  from sys import UnraisableHookArgs

_FOREVER_S = 2**32
_HAND_OVER = asyncio.BaseEventLoop.call_soon_threadsafe.__code__


@functools.cache
def hide_late_results() -> None:
  """Suppresses tracebacks for arrays that are still written or read after an error.

  At the first error, Orbax closes its event loop and raises. tensorstore's threads then
  cannot deliver the other results, and each prints a traceback. Only these threads call
  the loop from outside any Python function, so that their traceback begins in the loop.
  """
  show = sys.unraisablehook

  def show_others(unraisable: "UnraisableHookArgs") -> None:
    traceback = unraisable.exc_traceback
    if traceback is None or traceback.tb_frame.f_code is not _HAND_OVER:
      show(unraisable)

  sys.unraisablehook = show_others


def async_options(**options: Any) -> ocp.AsyncOptions:
  """Returns options for saving; a single process waits for its threads without limit.

  Orbax measures its timeout by the clock, which can be set, and which may stop while a
  laptop sleeps.
  """
  if jax.process_count() == 1:
    options["timeout_secs"] = _FOREVER_S
  return ocp.AsyncOptions(**options)


@dataclasses.dataclass(frozen=True)
class KeepBest:
  """Orbax policy that keeps the best state, though it is evaluated after its save."""

  best_step: Callable[[], int | None]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Returns for each checkpoint whether it is kept."""
    del context
    best = self.best_step()
    return [info.step == best for info in checkpoints]
