"""User mistakes become one line and an exit status; bugs keep their traceback.

Exit status: 0 success; 1 the run failed, or a bug; 2 a mistake of the user.
"""

import contextlib
import contextvars
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

from resnet_jax.runtime.terminal import printable

if TYPE_CHECKING:
  from concurrent.futures import ThreadPoolExecutor

Item = TypeVar("Item")
Made = TypeVar("Made")
_flags: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("flags")


class UserError(ValueError):
  """A mistake that the user can fix. A command prints one line and exits with 2.

  Attributes:
    setting: path of the wrong setting, such as "data.dir"; "" if no setting is wrong.
    value: its value; None if no setting is wrong.
  """

  def __init__(self, message: str, *, setting: str = "", value: object = None):
    """Takes one line: what is wrong, the value, what is allowed, how to fix it."""
    super().__init__(message)
    self.setting, self.value = setting, value


class NotFoundError(UserError, FileNotFoundError):
  """Something that the user named does not exist."""


@contextlib.contextmanager
def flags_of_settings(flags: Mapping[str, str]) -> Iterator[None]:
  """Makes `setting_name` return the flags of a command within the context.

  Nested contexts add up.

  Args:
    flags: path of a setting -> the flag that sets it, such as "data.dir" -> "--data".
  """
  token = _flags.set({**_flags.get({}), **flags})
  try:
    yield
  finally:
    _flags.reset(token)


def map_with_flags(
  pool: "ThreadPoolExecutor", function: Callable[[Item], Made], items: Sequence[Item]
) -> Iterator[Made]:
  """Returns `pool.map(function, items)`, whose errors name the flags as here."""
  contexts = (contextvars.copy_context() for _ in items)
  return pool.map(lambda item, own: own.run(function, item), items, contexts)


def setting_name(path: str) -> str:
  """Returns the name of a setting in messages: `config.PATH`, or the command's flag."""
  return _flags.get({}).get(path, f"config.{path}")


def show_error(error: BaseException | str) -> None:
  """Prints one line to standard error."""
  text = " ".join(str(error)[:10_000].split())  # A damaged file may hold long names.
  print(f"error: {printable(text)}", file=sys.stderr)


def describe_error(error: BaseException) -> str:
  """Returns the class and the text of another program's error, in one short line."""
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text:.200}" if text else type(error).__name__


def fail(status: int, error: BaseException | str) -> NoReturn:
  """Prints one line to standard error and exits."""
  show_error(error)
  sys.exit(status)


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
  """Turns errors that a user can fix into one line and an exit status.

  A `UserError` ends with status 2. A run that diverged, a full disk, a missing file or
  too little memory ends with status 1. Any other exception is a bug and keeps its
  traceback.
  """
  try:
    yield
  except UserError as error:
    fail(2, error)
  except BrokenPipeError as error:
    if not _stdout_is_closed():
      fail(1, error)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (FloatingPointError, OSError) as error:
    fail(1, error)
  except RuntimeError as error:  # JAX's errors have this type; no need to import JAX.
    # Ctrl-C within `Condition.wait` may make it release a lock that is already free.
    if isinstance(error.__context__, KeyboardInterrupt):
      fail(1, "interrupted")
    if not is_out_of_memory(error):
      raise
    reason = out_of_memory_reason(error)
    fail(
      1,
      f"out of memory: {reason}; take a smaller config.batch_size, "
      "config.optim.accumulate=2 or config.model.remat=True",
    )
  except KeyboardInterrupt:
    fail(1, "interrupted")


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
  """Adds a path to system errors without one, such as that of a full disk."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = str(path)
    raise


def _stdout_is_closed() -> bool:
  """Whether the reader of standard output, such as `head`, has closed it."""
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    return True
  if not hasattr(select, "poll"):  # Windows
    return False
  # A long text bypasses the buffer, so a flush succeeds even if the reader has gone.
  poll = select.poll()
  poll.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an error says that memory is too small for arrays or for a program."""
  return getattr(error, "error_code_string", "") == "RESOURCE_EXHAUSTED"


def out_of_memory_reason(error: BaseException) -> str:
  """Returns the first line of XLA's message for an out-of-memory error."""
  text = getattr(error, "error_message", "") or str(error)
  code = getattr(error, "error_code_string", "")
  return text.removeprefix(f"{code}: ").splitlines()[0].rstrip(".")
