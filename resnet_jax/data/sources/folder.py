"""Finds image files, their classes and their splits.

There are four layouts: a folder per class below `train/`, `val/` ...; a folder per
class without splits; Tiny-ImageNet's own; and a table of paths and labels.
"""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.data.sources.base import EVAL_SPLITS, split_name
from resnet_jax.data.sources.file_list import (
  _PARTS,
  FileList,
  _classes,
  _list_folder,
  has_image,
  own_images,
  sub_folders,
)
from resnet_jax.data.sources.tables import _list_table, _part, _read_table
from resnet_jax.data.sources.tiny_imagenet import _list_tiny_imagenet
from resnet_jax.runtime.errors import NotFoundError, UserError, setting_name

# A word in a folder's name that shows that it is a split and not a class.
_SPLIT_WORD = re.compile(
  r"(^|[^a-z])(train|training|val|valid|validation|test|testing|eval|evaluation|dev"
  r"|pred|prediction|holdout)([^a-z]|$)"
)


def check_local(config_dir: str) -> None:
  """Raises `UserError` if `config.data.dir` names remote storage."""
  if "://" not in config_dir:
    return
  remedy = "mount remote storage, such as a bucket with gcsfuse"
  if found := re.match(
    r"(?:hf://|https://huggingface\.co/)(?:datasets/)?([^/]+/[^/]+)", config_dir
  ):
    remedy = (
      f"a data set of the Hub is written hf://datasets/{found[1]}, with "
      f"{setting_name('data.name')}=parquet"
    )
  raise UserError(
    f"{setting_name('data.dir')}={config_dir!r} must be a local path; {remedy}"
  )


def find_root(config_dir: str) -> Path:
  """Returns the folder or table that `config.data.dir` names.

  Raises:
    ValueError: the setting is empty or names remote storage.
  """
  check_local(config_dir)
  if not config_dir:
    raise UserError(
      f"{setting_name('data.dir')}='' must be a folder or .csv file with "
      f"{setting_name('data.name')}='folder'"
    )
  return Path(os.path.expanduser(config_dir))


def list_splits(root: Path, kind: str = "class") -> list[str]:
  """Returns the splits that a folder or table of images has.

  Raises:
    FileNotFoundError: there is no such folder or table.
  """
  return list(_find_splits(root, kind))


def _find_splits(root: Path, kind: str = "class") -> dict[str, str]:
  """Returns the folder of each split, "" if the split has no folder of its own."""
  if not root.exists():
    raise NotFoundError(
      f"no {setting_name('data.dir')}={str(root)!r}: name a folder with a folder for "
      "each class, "
      "or a .csv file of path,label"
    )
  drawn = dict.fromkeys(_PARTS, "")
  if root.is_file():
    named = sorted({row.split for row in _read_table(root, kind)} - {""})
    return dict.fromkeys(named, "") or drawn
  return _split_folders(root) or drawn


def has_class_folders(root: Path) -> bool:
  """Whether a folder, or one of its splits, has at least two folders with images."""
  places = [root / name for name in _split_folders(root).values()] or [root]
  holding = (
    folder
    for place in places
    for name in sub_folders(place)
    if has_image(folder := place / name)
  )
  return len([*itertools.islice(holding, 2)]) == 2


def _split_folders(root: Path) -> dict[str, str]:
  """Returns the folder of each split; the case of the names does not matter.

  A class may also be called "train" or "test", so such folders are splits only if one
  of them holds folders.
  """
  # Tiny-ImageNet's test images have no labels.
  tiny = (root / "wnids.txt").is_file()
  found = named_splits(root, _PARTS if tiny else ["train", *EVAL_SPLITS])
  if not any(sub_folders(root / name) for name in found.values()):
    return {}
  return found


def named_splits(root: Path, known: Sequence[str]) -> dict[str, str]:
  """Returns the folders with the names of splits, whose case does not matter.

  Args:
    root: the folder that holds them.
    known: names of splits, in lower case.

  Returns:
    Split -> name of its folder, in the order of `known`.
  """
  found: dict[str, str] = {}
  for name in sub_folders(root):
    if name.lower() in known:
      if name.lower() in found:
        raise UserError(
          f"{str(root)!r} has both {found[name.lower()]} and {name}; rename or remove "
          "one"
        )
      found[name.lower()] = name
  return {split: found[split] for split in known if split in found}


def list_images(
  root: Path,
  split: str,
  val_share: float,
  class_names: Sequence[str] = (),
  kind: str = "class",
) -> FileList:
  """Lists the images of a split.

  Args:
    root: a folder, or a .csv file with the columns path, label and, optionally, split.
      Labels are class indices if all are whole numbers, otherwise class names.
    split: one of `list_splits`, or "" for the first of `EVAL_SPLITS` that exists.
    val_share: fraction of each class that is "val" if the layout has no splits, chosen
      by a hash of the file names; "train" is the rest.
    class_names: names in the order of their labels; by default the sorted names of
      "train".
    kind: see `DataConfig.labels`. Folders have one class an image.

  Raises:
    ValueError: the split does not exist, a class has no images or is not in
      `class_names`, or the table is not valid.
    FileNotFoundError: there is no such folder or table.
  """
  if kind != "class" and root.is_dir():
    raise UserError(
      f"config.data.labels={kind!r} needs the labels in a .csv file of path,label, not "
      f"the folder {str(root)!r}"
    )
  splits = _find_splits(root, kind)
  if not split:
    split = next((name for name in EVAL_SPLITS if name in splits), "")
  if not split:
    raise UserError(
      f"{str(root)!r} has {', '.join(splits)} and no split to evaluate: add one of "
      f"{', '.join(EVAL_SPLITS)}, or name the folder that holds the classes: a part of "
      "its images is then used for evaluation"
    )
  is_table, is_tiny = root.is_file(), (root / "wnids.txt").is_file()
  folder = splits.get(split.lower(), "")
  # The user may name any folder of folders as a split.
  if not (folder or is_table or is_tiny) and _holds_folders(root / split):
    folder = split
  asked = split.lower() if is_table else split
  if not folder and asked not in splits:
    raise UserError(
      f"{split_name()}={split!r} is not in {str(root)!r}; "
      f"there are: {', '.join(splits)}"
    )
  if is_table:
    return _list_table(root, asked, val_share, class_names, kind)
  if not folder:
    _check_not_splits(root)
    files = _list_folder(root, class_names or _classes(root))
    return _part(files, asked, val_share)
  if is_tiny:
    return _list_tiny_imagenet(root, split.lower(), folder)
  first = root / (splits.get("train") or folder)
  files = _list_folder(root / folder, class_names or _classes(first))
  others = [name for name in sub_folders(root) if name not in splits.values()]
  files.left_out += tuple(f"the folder {name!r}" for name in others if name != folder)
  return files


def _holds_folders(folder: Path) -> bool:
  """Whether a folder holds folders, with at most a few images beside them."""
  folders = sub_folders(folder) if folder.is_dir() else []
  return bool(folders) and sum(1 for _ in own_images(folder)) <= len(folders)


def _check_not_splits(root: Path) -> None:
  """Raises `UserError` if some of the class folders look like splits."""
  names = sub_folders(root)
  named = [name for name in names if _SPLIT_WORD.search(name.lower())]
  holding = [name for name in names if _holds_folders(root / name)]
  below = [sub for name in holding for sub in sub_folders(root / name)]
  splits = []
  if named == names or (len(named) > 1 and set(named) & set(holding)):
    splits = named
  # Splits share the names of at least two class folders. A single shared name may be a
  # folder "images" in each class.
  elif 1 < len(set(below)) < len(below):
    splits = holding
  if splits:
    raise UserError(
      f"the folders {', '.join(splits[:3])} in {str(root)!r} look like splits, not "
      "like classes: each split must have a folder of images for each class; name "
      f"them in {setting_name('data.train_split')} and "
      f"{setting_name('data.eval_split')}, or list the images in a .csv file"
    )
