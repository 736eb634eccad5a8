"""What a reader of archives returns, and its error for a damaged file."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.runtime.errors import UserError


class Row(NamedTuple):
  """One image.

  Attributes:
    image: content of an image file, or uint8 pixels: RGB [H, W, 3] or gray [H, W].
    label: index of its class.
    name: name of the image's file; "" if it has none.
  """

  image: bytes | np.ndarray
  label: int
  name: str = ""


class Split(NamedTuple):
  """The images of a split, in the order of the archive.

  Attributes:
    class_names: the name of each label.
    rows: the images. They are read one after another, and only once.
  """

  class_names: tuple[str, ...]
  rows: Iterable[Row]


# Path of each part of a data set, such as "train-images".
Files = Mapping[str, Path]
# (files, name of the split) -> split.
Read = Callable[[Files, str], Split]


class DamageError(Exception):
  """A file differs from what the authors published; the text says how."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
  """Turns the errors of readers in its block into one that names the file.

  Raises:
    UserError: the file is damaged.
    OSError: the system cannot read it.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Readers of archives raise errors of many types.
    if isinstance(error, OSError) and error.errno is not None:
      if error.filename is None:
        error.filename = str(path)
      raise
    reason = error if isinstance(error, DamageError) else f"it cannot be read ({error})"
    raise UserError(f"{str(path)!r} is damaged: {reason}; download it again") from error


def check(value: bool, reason: str) -> None:
  """Raises `DamageError` with the reason unless `value` is true."""
  if not value:
    raise DamageError(reason)
