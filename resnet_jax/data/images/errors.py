"""The error of an image that cannot be read, and the warning of a dark one."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import printable

# Returns the name of the image that this thread decodes; None asks for no warnings.
image_name: ContextVar[Callable[[], str] | None] = ContextVar("name", default=None)
_has_warned = threading.Lock()  # Taken for good by the first warning of the process.


class ImageError(ValueError):
  """An image cannot be read; the text says why."""


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
  """Turns every exception of a decoder or a resizer within into an `ImageError`.

  A `UserError` stays what it is.
  """
  try:
    yield
  except (ImageError, UserError):
    raise
  except Exception as error:  # Pillow and OpenCV raise all kinds.
    raise ImageError(f"it cannot be decoded ({error!r})") from error


def warn_of_few_bits(bits: int) -> None:
  """Says once a process that an image uses only so many of its 16 bits a channel."""
  name = image_name.get()
  if name is not None and _has_warned.acquire(blocking=False):
    text = (
      f"only {bits} of the 16 bits of {name()} are in use, and its upper 8 bits are "
      f"read: it becomes dark, of {2 ** (bits - 8)} levels; multiply the values by "
      f"{2 ** (16 - bits)}, perhaps of other images too"
    )
    print(f"warning: {printable(text)}", file=sys.stderr)
