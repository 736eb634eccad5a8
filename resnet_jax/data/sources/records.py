"""Images in files of many records, whatever the kind of the files.

Letters: N images of a split, R records of its files.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from resnet_jax.data.labels import label_bytes


@runtime_checkable
class Reader(Protocol):
  """Reads the images of records. It must be picklable."""

  def read(self, record: int) -> bytes:
    """Returns the content of an image file, or raises `ImageError`."""

  def name(self, record: int) -> str:
    """Returns the name of a record for messages."""

  def names(self) -> list[str]:
    """Returns the names of all R records."""

  def sizes(self) -> bytes:
    """Returns the sizes of the images or of groups of them, to notice other images."""


class Table(NamedTuple):
  """The records of some files.

  Attributes:
    reader: reads their images.
    labels: the label of each of the R records, as it is stored.
    class_names: the names of the classes whose indices are stored, or ().
  """

  reader: Reader
  labels: Sequence[Any]
  class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Records:
  """The images of a split: [i] is (content, label).

  Attributes:
    reader: reads the images.
    places: int [N], the record of each image.
    labels: of all images, see `LabelSpec`.
    class_names: names of the classes, or of the numbers of a label, in order.
  """

  reader: Reader
  places: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, index: int) -> tuple[bytes, Any]:
    """Reads an image; raises `ImageError` if that fails."""
    return self.reader.read(int(self.places[index])), self.labels[index]

  def name(self, index: int) -> str:
    """Returns the name of the image for messages."""
    return self.reader.name(int(self.places[index]))

  @cached_property
  def digest(self) -> str:
    """Hash of the names and sizes of all records, and of the images' labels."""
    names = "\0".join(self.reader.names()).encode(errors="surrogateescape")
    digest = hashlib.blake2b(names, digest_size=16)
    digest.update(self.reader.sizes())
    digest.update(self.places.astype("<i8").tobytes())
    digest.update(label_bytes(self.labels))
    return digest.hexdigest()

  def select(self, index: np.ndarray) -> "Records":
    """Returns the images at some indices."""
    return dataclasses.replace(
      self, places=self.places[index], labels=self.labels[index]
    )
