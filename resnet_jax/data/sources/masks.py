"""Finds images and their masks, for semantic segmentation.

A mask is a PNG file with the number of a class at each pixel. There are two layouts:
PASCAL VOC as downloaded; and the folders `images/` and `masks/` with files of equal
names, such as `images/a.jpg` and `masks/a.png`, beside `classes.txt`. Those may have
splits, `train/images/` or `images/train/`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.images.masked_images import decode_mask
from resnet_jax.data.labels import IGNORED, LabelSpec
from resnet_jax.data.sources.base import EVAL_SPLITS, split_name
from resnet_jax.data.sources.file_list import _PARTS, FileList, _read_lines
from resnet_jax.data.sources.mask_folders import (
  find_folders,
  first_of,
  left_out,
  match,
  own_split,
  part,
  read_classes,
)
from resnet_jax.data.voc_classes import VOC_CLASSES
from resnet_jax.runtime.errors import NotFoundError, UserError, setting_name

_VOC_IMAGES, _VOC_MASKS = "JPEGImages", "SegmentationClass"
_VOC_LISTS = "ImageSets/Segmentation"
# Masks that are searched for a class when a split is opened, and their largest size.
_SEARCHED, _MAX_PIXELS = 100, 100_000_000


class MaskedFiles:
  """The images of one split with their masks: [i] is (content, content of the mask).

  Attributes:
    class_names: names of the classes, by their numbers in the masks.
    label: the spec of a mask.
    left_out: a text for each kind of ignored files and folders; see `FileList`.
  """

  def __init__(
    self,
    root: str | Path,
    images: Sequence[str],
    masks: Sequence[str],
    class_names: Sequence[str],
    left_out: Sequence[str] = (),
  ):
    """Takes the paths of images and of their masks relative to `root`."""
    self.class_names = tuple(class_names)
    self.label = LabelSpec.of("mask", len(class_names))
    self.left_out = tuple(left_out)
    self._images = FileList(root, images, [0] * len(images), class_names)
    self._masks = FileList(root, masks, [0] * len(masks), class_names)

  def __len__(self) -> int:
    return len(self._images)

  @property
  def digest(self) -> str:
    """Hash of the paths below the root, in order."""
    both = self._images.digest + self._masks.digest
    return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

  def name(self, index: int) -> str:
    """Returns the path of image `index`."""
    return self._images.name(index)

  def __getitem__(self, index: int) -> tuple[bytes, Any]:
    """Reads both files; raises `ImageError` if that fails."""
    image, _ = self._images[index]
    try:
      return image, self._masks[index][0]
    except ImageError as error:
      raise ImageError(f"its mask {self._masks.name(index)!r}: {error}") from error


def list_mask_splits(root: Path) -> list[str]:
  """Returns the splits of a folder of images and masks.

  Raises:
    UserError: see `list_masked_images`.
  """
  if voc := _find_voc(root):
    return list(_voc_lists(voc))
  return list(find_folders(root)) or list(_PARTS)


def list_masked_images(
  root: Path, split: str, val_share: float, class_names: Sequence[str] = ()
) -> MaskedFiles:
  """Lists the images of a split and their masks.

  Args:
    root: the folder of PASCAL VOC (VOC2012), a folder above it, or a folder with
      `images/` and `masks/`, which may be in folders of splits.
    split: one of `list_mask_splits` or the folder of another split; "" is the first of
      `EVAL_SPLITS` that exists.
    val_share: fraction of the images that is "val" if there are no splits, chosen by a
      hash of the file names; "train" is the rest.
    class_names: names of the classes of a model, which the data must have too. A folder
      without `classes.txt` takes them.

  Raises:
    NotFoundError: there is no such folder.
    UserError: a folder, a split, an image, a mask or `classes.txt` is missing, a split
      is empty, a mask is no PNG file, or the masks seem to be black and white.
  """
  files = _list_split(root, split, val_share, class_names)
  _check_not_black_and_white(files)
  return files


def _list_split(
  root: Path, split: str, val_share: float, class_names: Sequence[str]
) -> MaskedFiles:
  if voc := _find_voc(root):
    _check_names(voc, VOC_CLASSES, class_names)
    return _list_voc(voc, _choose(split, list(_voc_lists(voc)), root))
  folders, own = find_folders(root), own_split(root, split)
  if own and split.lower() not in folders:
    chosen, found = split, own
  else:
    chosen = _choose(split.lower(), list(folders) or _PARTS, root)
    found = folders.get(chosen, ("images", "masks"))
  names = read_classes(root, class_names)
  _check_names(root / "classes.txt", names, class_names)
  pairs = match(root, *found)
  if not folders and not own:
    pairs = part(pairs, chosen, val_share, root)
  images, masks = [pair.image for pair in pairs], [pair.mask for pair in pairs]
  return MaskedFiles(root, images, masks, names, left_out(root, folders, found))


def _check_not_black_and_white(files: MaskedFiles) -> None:
  """Raises `UserError` if masks have no numbers but 0 and 255.

  A network would learn nothing from them, as 255 is ignored, and have perfect scores.
  """
  ignored = 0
  count = min(len(files), _SEARCHED)
  for index in np.linspace(0, len(files) - 1, count, dtype=int).tolist():
    try:
      mask = decode_mask(files._masks[index][0], IGNORED, _MAX_PIXELS)
    except ImageError:  # It is reported with its name when it is used.
      continue
    found = mask[mask != 0]
    if (found != IGNORED).any():
      return
    ignored += len(found)
  if ignored:
    raise UserError(
      f"{count:,} masks such as {files._masks.name(0)!r} have only the numbers 0 and "
      f"{IGNORED}, and {IGNORED} means that a pixel is ignored; if white is a class, "
      "save its number, such as 1"
    )


def _choose(split: str, splits: Sequence[str], root: Path) -> str:
  """Returns the split; "" is the first for evaluation."""
  chosen = split or next((name for name in EVAL_SPLITS if name in splits), "")
  if chosen in splits:
    return chosen
  there = ", ".join(splits)
  if not split:
    raise UserError(
      f"{str(root)!r} has {there} and no split to evaluate: add one of "
      f"{', '.join(EVAL_SPLITS)}, or name one in {setting_name('data.eval_split')}"
    )
  raise UserError(
    f"{split_name()}={split!r} is not in {str(root)!r}; there are: {there}"
  )


def _find_voc(root: Path) -> Path | None:
  """Returns the folder of PASCAL VOC in or below a folder; None if there is none."""
  if not root.is_dir():
    raise NotFoundError(
      f"no folder {setting_name('data.dir')}={str(root)!r}: name a folder with images/ "
      "and masks/, or the folder of PASCAL VOC"
    )
  places = [root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*"))]
  parts = _VOC_IMAGES, _VOC_MASKS
  found = [x for x in places if any((x / name).is_dir() for name in parts)]
  if len(found) > 1:
    raise UserError(
      f"{str(root)!r} has {', '.join(x.name for x in found)}; name one of these "
      f"in {setting_name('data.dir')}"
    )
  for name in (*parts, _VOC_LISTS) if found else ():
    if not (found[0] / name).is_dir():
      raise UserError(
        f"{str(found[0])!r} is PASCAL VOC without the folder {name}; unpack the whole "
        "archive, such as VOCtrainval_11-May-2012.tar"
      )
  return found[0] if found else None


def _voc_lists(voc: Path) -> dict[str, Path]:
  """Returns split -> the file with the names of its images."""
  return {path.stem: path for path in sorted((voc / _VOC_LISTS).glob("*.txt"))}


def _list_voc(voc: Path, split: str) -> MaskedFiles:
  path = _voc_lists(voc)[split]
  names = [line.strip() for line in _read_lines(path)]
  if not names:
    raise UserError(f"{str(path)!r} is empty; it must have the name of an image a line")
  if twice := [name for name, count in Counter(names).items() if count > 1]:
    raise UserError(f"{str(path)!r} must name an image once, not {twice[0]!r} twice")
  places = []
  for folder, suffix in ((_VOC_IMAGES, ".jpg"), (_VOC_MASKS, ".png")):
    there = set(os.listdir(voc / folder))
    if missing := [name for name in names if f"{name}{suffix}" not in there]:
      raise UserError(
        f"{first_of(missing, 'the image')} of {str(path)!r} has no file "
        f"{folder}/{missing[0]}{suffix}; unpack the whole archive, or name another "
        f"split in {split_name()}"
      )
    places.append([f"{folder}/{name}{suffix}" for name in names])
  return MaskedFiles(voc, places[0], places[1], VOC_CLASSES)


def _check_names(place: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
  """Raises `UserError` if the numbers mean other classes than those of a model."""
  if wanted and list(wanted) != list(names):
    raise UserError(
      f"the classes of {str(place)!r} must be those of the model, with the same "
      f"numbers: {_few(names)} are not {_few(wanted)}"
    )


def _few(names: Sequence[str]) -> str:
  return f"{', '.join(names[:5])}{' ...' * (len(names) > 5)}"
