"""How Orbax saves: patiently, with one message of an error, and the best state kept."""

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
  """Prints no traceback for each array that is still written or read.

  Orbax closes its event loop at the first error, which it raises. tensorstore's threads
  then cannot hand over the other results. Only they call the loop from no Python
  function, so that the traceback begins there.
  """
  show = sys.unraisablehook

  def show_others(unraisable: "UnraisableHookArgs") -> None:
    traceback = unraisable.exc_traceback
    if traceback is None or traceback.tb_frame.f_code is not _HAND_OVER:
      show(unraisable)

  sys.unraisablehook = show_others


def async_options(**options: Any) -> ocp.AsyncOptions:
  """Returns how Orbax saves: one process alone waits for its threads without an end.

  Orbax measures its timeout by the clock, which may be set, or stop with a laptop.
  """
  if jax.process_count() == 1:
    options["timeout_secs"] = _FOREVER_S
  return ocp.AsyncOptions(**options)


@dataclasses.dataclass(frozen=True)
class KeepBest:
  """Orbax's policy to keep the best state, whose evaluation came after it was saved."""

  best_step: Callable[[], int | None]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Returns for each checkpoint whether it is kept."""
    del context
    best = self.best_step()
    return [info.step == best for info in checkpoints]
