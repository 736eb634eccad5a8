"""`python -m resnet_jax` is `resnet-jax`, which begins here too."""

import os
import signal
import sys
from types import FrameType


def main(argv: list[str] | None = None) -> None:
  """Runs the command line `argv`, or the process's own; see `cli/main.py`."""
  # A shell lets its background jobs ignore the signal.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupt)
  from resnet_jax.cli import main as command
  from resnet_jax.runtime import interruption

  status: str | int | None = 0
  try:
    command.main(argv)
  except SystemExit as end:
    if argv is not None or not interruption.has_interrupted():
      raise
    status = end.code
  if argv is None and interruption.has_interrupted():
    interruption.leave(status if isinstance(status, int) else 1)


def _interrupt(number: int, frame: FrameType | None) -> None:
  """Ends the process if a module is being imported; else raises `KeyboardInterrupt`.

  Imports take the first seconds of a command, and may swallow any exception.
  """
  while frame is not None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
      os.write(2, b"error: interrupted\n")
      if library := sys.modules.get("resnet_jax.runtime.native_library"):
        getattr(library, "stop", int)()  # Not if it is being imported now.
      os._exit(1)
    frame = frame.f_back
  from resnet_jax.runtime.interruption import note_interruption

  note_interruption()
  signal.default_int_handler(number, frame)


if __name__ == "__main__":
  main()
