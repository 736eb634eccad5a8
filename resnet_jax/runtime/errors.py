"""Errors that a user can mend become one line and an exit status."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


def fail(status: int, error: BaseException | str) -> NoReturn:
  """Prints one line to standard error and exits."""
  lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
  # An error inside a config file comes with its traceback; its last line says what.
  text = lines[-1] if any("Traceback" in line for line in lines) else " ".join(lines)
  # Names in damaged files may hold codes that a terminal would obey.
  text = "".join(c if c.isprintable() else "?" for c in text)
  print(f"error: {text}", file=sys.stderr)
  sys.exit(status)


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
  """Turns the errors that a user can mend into one line and an exit status.

  `ValueError` and `FileNotFoundError` are wrong usage if this package raised them;
  a `ValueError` from anywhere else is a fault, and keeps its traceback.
  """
  try:
    yield
  except (ValueError, FileNotFoundError) as error:
    if _raised_here(error):
      fail(2, error)
    if isinstance(error, FileNotFoundError):
      fail(1, error)
    raise
  except BrokenPipeError:  # Who reads has enough, such as `head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (FloatingPointError, OSError) as error:
    fail(1, error)
  except RuntimeError as error:  # JAX's own kind is one; it need not be imported.
    # Ctrl-C within `Condition.wait` may leave a lock free that is then released again.
    if isinstance(error.__context__, KeyboardInterrupt):
      fail(1, "interrupted")
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    reason = str(error).split("RESOURCE_EXHAUSTED: ")[-1].splitlines()[0].rstrip(".")
    fail(
      1,
      f"out of memory: {reason}; take a smaller config.batch_size, "
      "config.optim.accumulate=2 or config.model.remat=True",
    )
  except KeyboardInterrupt:
    fail(1, "interrupted")


def _raised_here(error: BaseException) -> bool:
  """Whether this package or the main script raised an error, not a library."""
  raiser = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
  main = getattr(sys.modules["__main__"], "__file__", None) or ""
  return Path(__file__).resolve().parents[1] in raiser.parents or raiser == Path(main)
