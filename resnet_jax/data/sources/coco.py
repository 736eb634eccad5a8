"""Reads images with boxes in COCO's format, as in instances_train2017.json.

Letters: N images, K classes, M boxes of all images, n boxes of one image.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.images.decode import open_image, upright_size
from resnet_jax.data.images.errors import ImageError, image_errors
from resnet_jax.data.labels import LabelSpec, has_objects
from resnet_jax.data.sources.base import split_name
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.runtime.errors import NotFoundError, UserError

# Largest number of a box. A greater one cannot be a pixel, and would become infinite.
_MOST = 1e9


class BoxedFiles:
  """Image files with boxes: [i] is (content, float32 [n, 6]), see `LabelSpec`.

  Boxes are in the pixels of the upright image and do not leave it.

  Attributes:
    class_names: names of the K classes. COCO's files have 80, numbered here from 0 in
      the order of their ids. The weights of torchvision instead have 91 outputs, whose
      numbers are COCO's own ids, from 1 to 90 with gaps.
    category_ids: COCO's own id of each class.
    label: dtype and shape of the boxes of an image.
    max_boxes: the largest number of boxes of an image, at least 1.
    sizes: int32 [N, 2], width and height of the images, in pixels.
    left_out: a text for each kind of boxes and images that were left out.
  """

  label = LabelSpec(np.dtype(np.float32), (None, 6))

  def __init__(
    self,
    files: FileList,
    sizes: np.ndarray,
    boxes: np.ndarray,
    counts: np.ndarray,
    categories: Mapping[int, str],
    left_out: Sequence[str] = (),
  ):
    """Takes the files and their boxes in the same order.

    Args:
      files: the N images.
      sizes: see the attribute.
      boxes: float32 [M, 6], in the order of the images.
      counts: int [N], the number of boxes of each image.
      categories: name of each category id, in the order of the classes.
      left_out: see the attribute.
    """
    self.class_names = tuple(categories.values())
    self.category_ids = tuple(categories)
    self.max_boxes = int(counts.max())
    self.left_out = tuple(left_out)
    # A few arrays, however many images: quick to send to worker processes.
    self._files, self.sizes, self._boxes = files, sizes, boxes
    self._ends = np.cumsum([0, *counts])

  def __len__(self) -> int:
    return len(self._files)

  @property
  def digest(self) -> str:
    """Hash of the paths below the folder and of the boxes, in order."""
    digest = hashlib.blake2b(self._files.digest.encode(), digest_size=16)
    digest.update(self._ends.astype("<i8").tobytes())
    digest.update(self._boxes.astype("<f4").tobytes())
    return digest.hexdigest()

  def name(self, index: int) -> str:
    """Returns the path of image `index`."""
    return self._files.name(index)

  def boxes(self, index: int) -> np.ndarray:
    """Returns the rows of image `index`, float32 [n, 6], without reading the file."""
    start, end = self._ends[index : index + 2].tolist()
    return self._boxes[start:end]

  def __getitem__(self, index: int) -> tuple[bytes, np.ndarray]:
    """Reads a file; raises `ImageError` if that fails or its size is another one."""
    content, _ = self._files[index]
    with image_errors():
      size = upright_size(open_image(content, sys.maxsize))
    stated = tuple(self.sizes[index].tolist())
    if size != stated:
      # Its boxes would be at wrong places.
      raise ImageError(
        f"it has {size[0]}x{size[1]} pixels, and the file of boxes says "
        f"{stated[0]}x{stated[1]}; restore the original image, or correct the boxes"
      )
    return content, self.boxes(index)


def load_coco(
  path: str | Path, folder: str | Path, keep_empty: bool = True
) -> BoxedFiles:
  """Reads a file of boxes in COCO's format; the images are read later, one by one.

  The images are in the order of their ids. Boxes are clipped to their image, and boxes
  without area are left out. (COCOeval would count the latter as objects not found.)

  Args:
    path: a JSON file with the lists "images" (id, file_name, width, height),
      "categories" (id, name) and "annotations" (id, image_id, category_id, bbox as x,
      y, width and height in pixels, and iscrowd, 0 if it is absent).
    folder: the images, to which each file_name is relative.
    keep_empty: whether images without boxes are kept. Evaluation keeps them, because
      any detection in them is wrong; training leaves them out, as torchvision's
      references do.

  Raises:
    NotFoundError: the file, the folder or an image does not exist.
    UserError: the file is not of this format, an id occurs twice or is unknown, a
      number is not finite, or there are no boxes.
  """
  content = _read(Path(path))
  # COCOeval takes the images in this order, on which the rank of equal scores depends.
  images = dict(sorted(_by_id(path, "images", content["images"]).items()))
  categories = _by_id(path, "categories", content["categories"])
  names = {i: _get(path, "categories", x, "name", str) for i, x in categories.items()}
  names = dict(sorted(names.items()))
  files = [_get(path, "images", x, "file_name", str) for x in images.values()]
  sizes = np.array([_size(path, x) for x in images.values()], np.int32).reshape(-1, 2)
  place, boxes = _boxes(path, content["annotations"], list(images), list(names))
  del content  # It is large.
  boxes[:, :4] = boxes[:, :4].clip(0, np.tile(sizes, 2)[place])
  boxes = boxes.astype(np.float32)
  has_area = (boxes[:, 2:4] > boxes[:, :2]).all(axis=1)
  place, boxes = place[has_area], boxes[has_area]
  if not has_objects(boxes[None]):
    raise UserError(
      f"{str(path)!r} has no boxes with an area, apart from crowds (iscrowd)"
    )
  counts = np.bincount(place, minlength=len(files))
  kept = np.flatnonzero(counts >= (0 if keep_empty else 1))
  files = [files[i] for i in kept]
  _check_files(Path(folder), files)
  number = np.arange(len(files))
  return BoxedFiles(
    FileList(folder, files, number, ()),
    sizes[kept],
    boxes[np.argsort(place, kind="stable")],
    counts[kept],
    names,
    _left_out(int((~has_area).sum()), len(counts) - len(kept)),
  )


def _left_out(boxes: int, images: int) -> list[str]:
  found = {"box" + "es" * (boxes != 1) + " without area": boxes}
  found["image" + "s" * (images != 1) + " without boxes"] = images
  return [f"{count:,} {name}" for name, count in found.items() if count]


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
  """Returns the three lists of a file."""
  try:
    content = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise NotFoundError(f"there is no file {str(path)!r}") from None
  except OSError as error:
    raise UserError(f"{str(path)!r} cannot be read ({error.strerror})") from error
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"{str(path)!r} is not JSON ({error}); name a file such as "
      "instances_train2017.json, and unpack archives first"
    ) from error
  for name in ("images", "annotations", "categories"):
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
      raise UserError(
        f"{str(path)!r} has no list {name!r} of objects; it must have COCO's format, "
        "as instances_train2017.json has"
      )
    if not found:
      raise UserError(f"{str(path)!r}: the list {name!r} is empty")
  lists: dict[str, list[dict[str, Any]]] = content
  return lists


def _get(
  path: str | Path, part: str, item: Mapping[str, Any], key: str, kind: type
) -> Any:
  """Returns a value of an image, annotation or category, whose type is checked."""
  value = item.get(key)
  if type(value) is not kind:  # True is an `int` too.
    kinds = {int: "a whole number", str: "a text", list: "a list"}
    found = f"is {str(value)[:40]!r}" if key in item else "is missing"
    raise UserError(
      f"{str(path)!r}: in {part!r}, {key!r} {found} in {str(item)[:80]}; it must be "
      f"{kinds[kind]}"
    )
  return value


def _by_id(
  path: str | Path, part: str, items: Iterable[dict[str, Any]]
) -> dict[int, dict[str, Any]]:
  """Returns the objects of a list by their ids, in order."""
  found: dict[int, dict[str, Any]] = {}
  for item in items:
    number = _get(path, part, item, "id", int)
    if number in found:
      raise UserError(f"{str(path)!r}: in {part!r}, id {number} occurs twice")
    found[number] = item
  return found


def _size(path: str | Path, image: Mapping[str, Any]) -> list[int]:
  """Returns width and height of an image."""
  size: list[int] = [_get(path, "images", image, x, int) for x in ("width", "height")]
  if not all(0 < x <= _MOST for x in size):
    raise UserError(
      f"{str(path)!r}: image {image['id']} has width and height {size}; both must be "
      f"in [1, {_MOST:.0e}]"
    )
  return size


def _boxes(
  path: str | Path,
  annotations: Sequence[dict[str, Any]],
  images: Sequence[int],
  categories: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the index of the image of each box [M], and the boxes, float64 [M, 6]."""
  of_image = {number: i for i, number in enumerate(images)}
  of_category = {number: i for i, number in enumerate(categories)}
  place = np.empty(len(annotations), np.int64)
  boxes = np.empty((len(annotations), 6))
  part = "annotations"
  for i, (number, item) in enumerate(_by_id(path, part, annotations).items()):
    image = _get(path, part, item, "image_id", int)
    category = _get(path, part, item, "category_id", int)
    box = _get(path, part, item, "bbox", list)
    crowd = item.get("iscrowd", 0)
    reason = ""
    if image not in of_image:
      reason = f"the unknown image_id {image}"
    elif category not in of_category:
      reason = f"the unknown category_id {category}"
    elif len(box) != 4 or not all(type(x) in (int, float) for x in box):
      reason = f"the bbox {str(box)[:60]}; it must be x, y, width, height"
    elif not all(abs(x) <= _MOST for x in box):  # NaN is not.
      reason = f"the bbox {str(box)[:60]}; its numbers must be finite pixels"
    elif crowd not in (0, 1):
      reason = f"iscrowd {str(crowd)[:40]}; it must be 0 or 1"
    if reason:
      raise UserError(f"{str(path)!r}: annotation {number} has {reason}")
    x, y, width, height = box
    place[i] = of_image[image]
    boxes[i] = x, y, x + width, y + height, of_category[category], crowd
  return place, boxes


def _check_files(folder: Path, files: Sequence[str]) -> None:
  """Raises `NotFoundError` unless all images exist."""
  if not folder.is_dir():
    raise NotFoundError(f"there is no folder of images {str(folder)!r}")
  # Listing a folder is quicker than asking for each of 100,000 files.
  listed = {
    place: _listed(folder / place) for place in set(map(os.path.dirname, files))
  }
  missing = [
    file
    for file in files
    if os.path.basename(file) not in listed[os.path.dirname(file)]
    and not os.path.isfile(folder / file)
  ]
  if missing:
    others = f", and {len(missing) - 1:,} more images" if missing[1:] else ""
    raise NotFoundError(
      f"there is no image {str(folder / missing[0])!r}{others} of {len(files):,}; name "
      "the folder to which file_name is relative"
    )


def _listed(folder: Path) -> set[str]:
  try:
    return set(os.listdir(folder))
  except (OSError, ValueError):  # There is no such folder, or there cannot be one.
    return set()


def list_boxed_images(root: Path, split: str, is_training: bool) -> BoxedFiles:
  """Finds a split of a folder with files of boxes in COCO's format.

  Args:
    root: a folder with `annotations/instances_SPLIT.json`, as COCO has, or
      `annotations/SPLIT.json` or `SPLIT.json`; and the images in `SPLIT/`,
      `images/SPLIT/` or `images/`.
    split: the name of the split, such as train2017; "train" and "" also find the only
      split whose name begins with train or val.
    is_training: whether images without boxes are left out.

  Raises:
    NotFoundError: there is no such file or folder.
    UserError: several splits could be meant; or see `load_coco`.
  """
  files = [
    path
    for place in (root, root / "annotations")
    for path in sorted(place.glob("*.json"))
  ]
  wanted = split or "val"
  near = [path for path in files if _split_of(path) == wanted] or [
    path for path in files if _split_of(path).startswith(wanted)
  ]
  if len(near) != 1:
    there = ", ".join(str(path.relative_to(root)) for path in near or files) or "none"
    raise UserError(
      f"{split_name()}={split!r} must name one file of boxes in {str(root)!r} or its "
      f"folder annotations, such as instances_train2017.json; there are: {there}"
    )
  name = _split_of(near[0])
  folders = [root / name, root / "images" / name, root / "images"]
  folder = next((folder for folder in folders if folder.is_dir()), folders[0])
  return load_coco(near[0], folder, keep_empty=not is_training)


def _split_of(path: Path) -> str:
  return path.stem.removeprefix("instances_")
