"""The error of an image that cannot be read."""

import contextlib
from collections.abc import Iterator

from resnet_jax.runtime.errors import UserError


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
