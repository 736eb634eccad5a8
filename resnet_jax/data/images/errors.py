"""The error for an unreadable image and the warning for a dark one."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import printable

# Returns the name of the image that this thread decodes; None disables warnings.
image_name: ContextVar[Callable[[], str] | None] = ContextVar("name", default=None)
_has_warned = threading.Lock()  # The first warning of the process takes and keeps it.


class ImageError(UserError):
  """An image cannot be read; the text says why."""


class UnfitError(ImageError):
  """The pixels of a readable image do not fit the settings; the text says why."""


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
  """Turns exceptions of decoders and resizers in its block into `ImageError`.

  A `UserError` is not changed.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Pillow and OpenCV raise errors of many types.
    raise ImageError(f"it cannot be decoded ({error!r})") from error


def warn_of_few_bits(bits: int) -> None:
  """Warns once per process that an image uses only `bits` of 16 bits per channel."""
  name = image_name.get()
  if name is not None and _has_warned.acquire(blocking=False):
    text = (
      f"only {bits} of the 16 bits of {name()} are in use, so it becomes dark and "
      f"coarse; if {2**bits - 1} counts as white in all images, set config.data."
      f"max_value={2**bits - 1}"
    )
    print(f"warning: {printable(text)}", file=sys.stderr)
