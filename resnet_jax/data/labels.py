"""Labels of images: their dtypes and shapes, and checks of arrays of them.

Letters: N images, H height, W width, K classes, M boxes of an image, with padding.
"""

import dataclasses
from typing import Any

import numpy as np

from resnet_jax.runtime.arrays import Bool, Float32
from resnet_jax.runtime.errors import UserError

IGNORED = 255  # The class of pixels that count neither in the loss nor in a score.


@dataclasses.dataclass(frozen=True)
class LabelSpec:
  """Dtype and shape of the label of one image.

  - "class": int32 () in [0, K).
  - "classes": bool [K].
  - "numbers": float32 [K].
  - "mask": uint8 [H, W], the class of each pixel, or 255 for a pixel that is ignored.
  - "boxes": float32 [M, 6]. A row has x0, y0, x1, y1 in pixels, the class, and 1 for a
    crowd (several objects, which are no targets) or 0. The last rows are padding, with
    the class -1.

  None in `shape` is a size that depends on the image.
  """

  dtype: np.dtype[Any]
  shape: tuple[int | None, ...]

  @classmethod
  def of(cls, kind: str, num_classes: int) -> "LabelSpec":
    """Returns the spec of a value of `DataConfig.labels`."""
    specs: dict[str, tuple[type[Any], tuple[int | None, ...]]] = {
      "class": (np.int32, ()),
      "classes": (np.bool_, (num_classes,)),
      "numbers": (np.float32, (num_classes,)),
      "mask": (np.uint8, (None, None)),
      "boxes": (np.float32, (None, 6)),
    }
    dtype, shape = specs[kind]
    return cls(np.dtype(dtype), shape)

  @property
  def kind(self) -> str:
    """The value of `DataConfig.labels`."""
    kinds = {"b1": "classes", "f1": "numbers", "u2": "mask", "f2": "boxes"}
    return kinds.get(f"{self.dtype.kind}{len(self.shape)}", "class")

  def fits(self, shape: tuple[int, ...]) -> bool:
    """Whether an array of a shape can be such a label."""
    pairs = zip(self.shape, shape, strict=False)
    return len(shape) == len(self.shape) and all(a in (b, None) for a, b in pairs)


def checked_labels(
  labels: np.ndarray, images: tuple[int, ...], num_names: int
) -> np.ndarray:
  """Returns the labels of images [N, H, W] in the dtype and shape of `LabelSpec`."""
  if labels.ndim == 3:
    return _checked_dense(labels, images, num_names)
  kind, count = labels.dtype.kind, images[0]
  if kind == "f" and labels.shape == (count,):
    labels = labels[:, None]
  if labels.shape == (count, num_names) and kind in "biuf":
    if kind == "f" and np.isfinite(labels).all():
      return labels.astype(np.float32)
    if kind != "f" and np.isin(labels, (0, 1)).all():
      return labels.astype(bool)
    allowed = "finite numbers" if kind == "f" else "0 or 1 for each class"
    raise UserError(f"labels {describe_array(labels)} must be {allowed}")
  if labels.shape != (count,) or kind not in "iu":
    raise UserError(
      f"labels must be whole numbers [{count}], one for each image, or bool or floats "
      f"[{count}, {num_names}], one for each of the {num_names} class names, not "
      f"{describe_array(labels)}"
    )
  low, high = int(labels.min()), int(labels.max())
  if low < 0 or high >= num_names:
    raise UserError(
      f"labels must be in [0, {num_names}), the number of class names; they go from "
      f"{low} to {high}"
    )
  return labels.astype(np.int32)


def _checked_dense(
  labels: np.ndarray, images: tuple[int, ...], num_names: int
) -> np.ndarray:
  """Returns masks or boxes of images [N, H, W]."""
  if labels.dtype == np.uint8 and labels.shape == images:
    classes, ignored = labels, IGNORED
  elif labels.dtype.kind == "f" and labels.shape[::2] == (images[0], 6):
    labels = labels.astype(np.float32)
    classes, ignored = labels[..., 4], -1
    _check_boxes(labels[classes != -1], images)
  else:
    raise UserError(
      f"labels must be masks, uint8 {list(images)}, or boxes, floats [{images[0]}, M, "
      f"6], for images {list(images)}, not {describe_array(labels)}"
    )
  allowed = (classes == ignored) | np.isin(classes, np.arange(num_names))
  if not allowed.all():
    raise UserError(
      f"labels have the class {classes[~allowed][0]:g}, which must be a whole number "
      f"in [0, {num_names}), the number of class names, or {ignored}"
    )
  return labels


def _check_boxes(rows: Float32[np.ndarray, "m 6"], images: tuple[int, ...]) -> None:
  """Raises `UserError` unless boxes in images [N, H, W] are within them."""
  _, height, width = images
  is_crowd = np.isin(rows[:, 5], (0, 1))
  if (wrong := ~are_within(rows, width, height) | ~is_crowd).any():
    raise UserError(
      f"labels have the box {rows[wrong][0].tolist()}; x0, y0, x1, y1 must have an "
      f"area and be in the {width}x{height} pixels of the images, and crowd be 0 or 1; "
      "rows of padding have the class -1"
    )


def are_within(
  rows: Float32[np.ndarray, "m _"], width: int, height: int
) -> Bool[np.ndarray, " m"]:
  """Returns which boxes have an area and are within an image; NaN is not."""
  low, high = rows[:, :2], rows[:, 2:4]
  fits = (low >= 0) & (low < high) & (high <= np.array([[width, height]]))
  found: np.ndarray = np.all(fits, axis=1)
  return found


def has_objects(labels: Float32[np.ndarray, "n m 6"]) -> bool:
  """Whether there is a box that is no padding and no crowd."""
  return bool(((labels[..., 4] >= 0) & (labels[..., 5] == 0)).any())


def label_bytes(labels: np.ndarray) -> bytes:
  """Returns the content of an array of labels, equal on all machines."""
  dtypes = {"b": "?", "f": "<f4", "u": "u1"}
  return labels.astype(dtypes.get(labels.dtype.kind, "<i4")).tobytes()


def describe_array(array: np.ndarray) -> str:
  return f"{array.dtype} {list(array.shape)}"
