"""Mistakes of the user become one line and an exit status; bugs keep their traceback.

Exit status: 0 done, 1 the run failed or a bug, 2 a mistake of the user.
"""

import contextlib
import contextvars
import os
import select
import sys
from collections.abc import Iterator, Mapping
from typing import NoReturn

from resnet_jax.runtime.terminal import printable

_flags: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("flags")


class UserError(ValueError):
  """A mistake that the user can mend. A command shows it as one line, status 2.

  Attributes:
    setting: path of the setting that is wrong, such as "data.dir"; "" if none is.
    value: its value; None if no setting is wrong.
  """

  def __init__(self, message: str, *, setting: str = "", value: object = None):
    """Takes one line: what is wrong, the value, what is allowed, how to mend it."""
    super().__init__(message)
    self.setting, self.value = setting, value


class NotFoundError(UserError, FileNotFoundError):
  """Something that the user named does not exist."""


@contextlib.contextmanager
def flags_of_settings(flags: Mapping[str, str]) -> Iterator[None]:
  """Has `setting_name` give the flags of a command within the context.

  Contexts within each other add up.

  Args:
    flags: path of a setting -> the flag that sets it, such as "data.dir" -> "--data".
  """
  token = _flags.set({**_flags.get({}), **flags})
  try:
    yield
  finally:
    _flags.reset(token)


def setting_name(path: str) -> str:
  """Returns what a message calls a setting: `config.PATH`, or the command's flag."""
  return _flags.get({}).get(path, f"config.{path}")


def show_error(error: BaseException | str) -> None:
  """Prints one line to standard error."""
  text = " ".join(str(error)[:10_000].split())  # A damaged file may hold long names.
  print(f"error: {printable(text)}", file=sys.stderr)


def fail(status: int, error: BaseException | str) -> NoReturn:
  """Prints one line to standard error and exits."""
  show_error(error)
  sys.exit(status)


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
  """Turns the errors that a user can mend into one line and an exit status.

  A `UserError` ends with status 2; a run that diverged, a full disk, a lost file or too
  little memory with status 1. Any other exception is a bug and keeps its traceback.
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
  except RuntimeError as error:  # JAX's errors are such; JAX need not be imported.
    # Ctrl-C within `Condition.wait` may leave a lock free that is then released again.
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
  """Adds a path to errors of the system that name none, as that of a full disk."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = str(path)
    raise


def _stdout_is_closed() -> bool:
  """Whether the reader of standard output, such as `head`, has enough."""
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    return True
  if not hasattr(select, "poll"):  # Windows
    return False
  # A long text is written past the buffer, and then there is nothing to flush.
  poll = select.poll()
  poll.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))


def is_out_of_memory(error: BaseException) -> bool:
  """Whether JAX found too little memory on a device, or XLA no room for a program."""
  return getattr(error, "error_code_string", "") == "RESOURCE_EXHAUSTED"


def out_of_memory_reason(error: BaseException) -> str:
  """Returns the first line of what XLA says of an error of too little memory."""
  text = getattr(error, "error_message", "") or str(error)
  code = getattr(error, "error_code_string", "")
  return text.removeprefix(f"{code}: ").splitlines()[0].rstrip(".")
