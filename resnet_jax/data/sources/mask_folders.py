"""Pairs the files of the folders `images/` and `masks/`, with or without splits."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.data.labels import IGNORED
from resnet_jax.data.sources.base import EVAL_SPLITS, is_validation
from resnet_jax.data.sources.file_list import (
  count_other_suffixes,
  describe_suffixes,
  files_below,
  is_image,
  no_images,
  own_images,
)
from resnet_jax.data.sources.folder import named_splits
from resnet_jax.runtime.errors import UserError, setting_name

_SPLITS = ["train", *EVAL_SPLITS]
# The numbers from 0 to 254 are classes; 255 means that a pixel is ignored.
_MOST_CLASSES = IGNORED


class Pair(NamedTuple):
  """An image and its mask.

  Attributes:
    stem: their common path below their folders, without the suffix.
    image: path below the root.
    mask: path below the root.
  """

  stem: str
  image: str
  mask: str


def find_folders(root: Path) -> dict[str, tuple[str, str]]:
  """Returns split -> (folder of images, folder of masks); {} without splits."""
  above = {
    split: (f"{name}/images", f"{name}/masks")
    for split, name in named_splits(root, _SPLITS).items()
    if (root / name / "images").is_dir()
  }
  if above:
    return above
  missing = [name for name in ("images", "masks") if not (root / name).is_dir()]
  if missing:
    raise UserError(
      f"{str(root)!r} has no folder {' and no folder '.join(missing)}: it must have "
      "images/ and masks/, or train/images/, train/masks/, val/images/ and val/masks/, "
      "or be the folder VOC2012 of PASCAL VOC"
    )
  below = named_splits(root / "images", _SPLITS)
  return {x: (f"images/{name}", f"masks/{name}") for x, name in below.items()}


def own_split(root: Path, split: str) -> tuple[str, str] | None:
  """Returns the folders of a split with any name; None if there are none."""
  above = f"{split}/images", f"{split}/masks"
  below = f"images/{split}", f"masks/{split}"
  found = (pair for pair in (above, below) if split and (root / pair[0]).is_dir())
  return next(found, None)


def match(root: Path, images: str, masks: str) -> list[Pair]:
  """Finds the mask of each image in two folders below the root."""
  every = _stems(root, images)
  photos = [(stem, path) for stem, path in every if is_image(path)]
  if not photos:
    raise no_images(root / images, [path for _, path in every], "add some")
  drawn = [(stem, path) for stem, path in _stems(root, masks) if is_image(path)]
  if wrong := [path for _, path in drawn if not path.lower().endswith(".png")]:
    raise UserError(
      f"{first_of(wrong, 'the mask')} in {str(root)!r} must be a PNG file, which keeps "
      "the numbers of the classes exactly; save it as .png, or remove it"
    )
  for files in (photos, drawn):
    _check_once(root, files)
  known = dict(drawn)
  if missing := [path for stem, path in photos if stem not in known]:
    raise UserError(
      f"{first_of(missing, 'the image')} in {str(root)!r} has no mask in {masks}: a "
      "mask has the name of its image, and the suffix .png; add it, or remove the image"
    )
  stems = {stem for stem, _ in photos}
  if missing := [path for stem, path in drawn if stem not in stems]:
    raise UserError(
      f"{first_of(missing, 'the mask')} in {str(root)!r} has no image in {images}: an "
      "image has the name of its mask; add it, or remove the mask"
    )
  return [Pair(stem, path, known[stem]) for stem, path in photos]


def _stems(root: Path, place: str) -> list[tuple[str, str]]:
  """Returns (path below a folder without suffix, path below the root) of its files."""
  if not (root / place).is_dir():
    raise UserError(
      f"{str(root)!r} has no folder {place}; each folder of images needs a folder of "
      "masks"
    )
  found = []
  for path in files_below(root / place):
    _, _, name = path.partition("/")
    found.append((os.path.splitext(name)[0], f"{place}/{name}"))
  return found


def _check_once(root: Path, files: Iterable[tuple[str, str]]) -> None:
  first: dict[str, str] = {}
  for stem, path in files:
    if other := first.get(stem):
      raise UserError(
        f"{other!r} and {path!r} in {str(root)!r} differ only in their suffix, so "
        "one would have the mask or the image of the other; rename or remove one"
      )
    first[stem] = path


def part(pairs: list[Pair], split: str, share: float, root: Path) -> list[Pair]:
  """Returns the "train" or "val" part of files that have no splits of their own."""
  names = [os.fsencode(pair.stem) for pair in pairs]
  is_val = is_validation(names, np.zeros(len(pairs), np.int32), share)
  wanted = split == "val"
  found = [pair for pair, val in zip(pairs, is_val, strict=True) if val == wanted]
  if not found:
    raise UserError(
      f"a share of {share} of the {len(pairs):,} images in {str(root)!r} leaves none "
      f"for {split}; change {setting_name('data.val_share')} or add images"
    )
  return found


def left_out(
  root: Path, folders: Mapping[str, tuple[str, str]], found: tuple[str, str]
) -> list[str]:
  """Returns texts for the files that belong to no image of any split."""
  every = (path for place in found for path in files_below(root / place))
  texts = list(describe_suffixes(count_other_suffixes(every)))
  if folders:
    for name in ("images", "masks"):
      if (root / name).is_dir() and (outside := list(own_images(root / name))):
        texts.append(f"{len(outside):,} files of {name} outside of the splits")
  return texts


def first_of(names: Sequence[str], kind: str) -> str:
  """Returns the first of several names and how many more there are."""
  more = f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
  return f"{kind} {names[0]!r}{more}"


def read_classes(root: Path, class_names: Sequence[str]) -> Sequence[str]:
  """Returns the names in classes.txt, or those of a model if there is no such file."""
  path = root / "classes.txt"
  if not path.is_file():
    if class_names:
      return class_names
    raise UserError(
      f"{str(root)!r} has no classes.txt: write a text file with the name of a class "
      "in each line, the first for the number 0 in the masks, such as background"
    )
  try:
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{str(path)!r} must be text in UTF-8: {error}") from error
  names = [line.strip() for line in text.rstrip().splitlines()]
  for line, name in enumerate(names, 1):
    if not name or name in names[: line - 1]:
      what = f"repeats {name!r}" if name else "is empty"
      raise UserError(
        f"{str(path)!r}, line {line} {what}; each line must name another class, as its "
        "number in the masks is the number of the line, from 0"
      )
  if not 2 <= len(names) <= _MOST_CLASSES:
    raise UserError(
      f"{str(path)!r} names {len(names)} classes, and must name 2 to {_MOST_CLASSES}, "
      "the background included, one in each line"
    )
  return names
