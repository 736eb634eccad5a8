"""The types and protocols of data sets, from image files to batches on the devices.

Your own data set must satisfy one of these protocols. The rest of the package uses only
their members. A feed is the input of one call of the compiled step, which can run
several batches; `take_batch` takes one batch from it.

Letters: N examples, B batch, H height, W width, C channels.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from typing_extensions import TypeIs

from resnet_jax.config.plan import Plan
from resnet_jax.data.batch import TakeBatch
from resnet_jax.data.labels import (
  LabelSpec,
  checked_labels,
  describe_array,
  label_bytes,
)
from resnet_jax.runtime.arrays import PRNGKeyArray
from resnet_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageArrays:
  """A split in host memory, small enough to be kept on the devices.

  Attributes:
    images: uint8 [N, H, W, C], N > 0; or uint16, of which 65535 counts as 1.
    labels: one of: integers [N] in [0, K), converted to int32; bool [N, K], or integers
      0 and 1, for any number of classes an image; finite floats [N, K] or [N] for
      regression, converted to float32 [N, K]; uint8 [N, H, W] for masks; finite floats
      [N, M, 6] for boxes within the images, converted to float32. See `LabelSpec`.
    class_names: names of the K classes or numbers of the data set, in order.

  Raises:
    UserError: an array has another dtype or shape, or a label has no name.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]

  def __post_init__(self) -> None:
    images, labels = self.images, self.labels
    is_known = images.dtype in (np.uint8, np.uint16)
    if not is_known or images.ndim != 4 or not len(images):
      raise UserError(
        "images must be uint8 or uint16 [N, H, W, C] with N > 0, not "
        f"{describe_array(images)}"
      )
    labels = checked_labels(labels, images.shape[:3], len(self.class_names))
    object.__setattr__(self, "labels", labels)
    object.__setattr__(self, "class_names", tuple(self.class_names))

  def __len__(self) -> int:
    return len(self.images)

  @property
  def digest(self) -> str:
    """Hash of the number and shape of the images and of their labels in order."""
    text = f"{self.images.shape}".encode()
    return hashlib.blake2b(text + label_bytes(self.labels), digest_size=16).hexdigest()

  def name(self, index: int) -> str:
    """Returns a name for messages. The images have no files, so it is the index."""
    return f"image {index}"


@runtime_checkable
class ImageSource(Protocol):
  """A split whose images are decoded on demand. It must be picklable.

  It may also have an attribute `labels`, an array of the labels of all images. It must
  have one if a label is several classes or numbers. If a label is a mask or boxes, it
  must have an attribute `label`, the `LabelSpec`; then [i] is (content of the image
  file, content of the file of the mask) or (content, float32 [n, 6] of the boxes), with
  n of at most its attribute `max_boxes`.
  """

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes, or of the numbers of a label, in order."""

  def __len__(self) -> int:
    """Number of images."""

  def __getitem__(self, index: int) -> tuple[bytes, Any]:
    """Returns (content of an image file, label), or raises `ImageError`."""

  def name(self, index: int) -> str:
    """Returns the name of the image for messages."""


@runtime_checkable
class Dataset(Protocol):
  """One split, as training and evaluation read it.

  Attributes:
    num_examples: N.
    class_names: names of the labels, in order.
    image_shape: (H, W, C) of a batch's images.
    skipped: for each unreadable image that was skipped, its index and the reason.
    take_batch: (feed, batch number) -> Batch. It is traced within the compiled step.

  It may also have a `digest`, a string that is equal for equal lists of images. A run
  can then be resumed only with the same images.
  """

  @property
  def num_examples(self) -> int: ...

  @property
  def class_names(self) -> Sequence[str]: ...

  @property
  def image_shape(self) -> tuple[int, int, int]: ...

  @property
  def skipped(self) -> Mapping[int, str]: ...

  @property
  def take_batch(self) -> TakeBatch[Any]: ...

  def train_chunks(
    self, key: PRNGKeyArray, step: int, plan: Plan
  ) -> Iterator[tuple[int, Any, int]]:
    """Yields the input of each call of the compiled step, from `step` to the end.

    The input is (step after the call, feed, number of updates in the call). A batch
    must be a function of (key, step), so that a resumed run is exact.

    Args:
      key: PRNG key of the order and of the augmentation.
      step: completed updates.
      plan: limits the number of updates per call.
    """

  def eval_chunks(self) -> Iterator[tuple[Any, int]]:
    """Yields (feed, number of batches): every example once, padding masked."""


# Where the images of a split come from.
Source = ImageArrays | ImageSource


def is_source(images: Dataset | Source) -> TypeIs[Source]:
  """Whether the images must still be put into batches."""
  return isinstance(images, ImageArrays | ImageSource)


def is_in_memory(source: Source) -> TypeIs[ImageArrays]:
  """Whether the images are in host memory; else they are read one by one."""
  return isinstance(source, ImageArrays)


def known_labels(source: Source | Dataset) -> np.ndarray | None:
  """Returns the labels of all images; None if they are not known before the images."""
  labels: np.ndarray | None = getattr(source, "labels", None)
  return labels


def label_spec(source: Source) -> LabelSpec:
  """Returns the dtype and shape of the label of an image."""
  own: LabelSpec | None = getattr(source, "label", None)
  if own is not None:
    return own
  labels = known_labels(source)
  if labels is None:
    return LabelSpec.of("class", len(source.class_names))
  return LabelSpec(labels.dtype, labels.shape[1:])


def count_classes(source: Source | Dataset) -> tuple[int, ...]:
  """Returns the number of images of each class; () if it is not known.

  It is known of images in memory, and of an `ImageSource` or `Dataset` that has an
  attribute `labels`. Numbers have no classes.
  """
  labels = known_labels(source)
  if labels is None or labels.dtype.kind == "f" or labels.ndim > 2:
    return ()
  if labels.ndim == 2:
    return tuple(labels.sum(axis=0).tolist())
  return tuple(np.bincount(labels, minlength=len(source.class_names)).tolist())


# (number of images of a split or 0 if unknown, their digest or "").
ImageCount = tuple[int, str]


def count_images(source: Source | Dataset) -> ImageCount:
  """Returns how many images there are, and the digest of their list if it has one."""
  count = len(source) if is_source(source) else source.num_examples
  return count, getattr(source, "digest", "")


def describe_change(old: ImageCount, new: ImageCount) -> str:
  """Returns what has changed, such as "there are 36"; "" if no change is known."""
  if old[0] and new[0] and old[0] != new[0]:
    return f"there are {new[0]:,}"
  is_known = all((*old, *new))
  return "their names or labels are different" if is_known and old != new else ""
