"""Images as files: which there are, of which class, in which split.

Four layouts: a folder for each class, below `train/`, `val/` ... or with no splits;
Tiny-ImageNet's own; and a table of paths and labels.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.data.sources.base import split_name
from resnet_jax.data.sources.file_list import (
  _PARTS,
  FileList,
  _classes,
  _list_folder,
  count_images,
  sub_folders,
)
from resnet_jax.data.sources.tables import _list_table, _part, _read_table
from resnet_jax.data.sources.tiny_imagenet import _list_tiny_imagenet
from resnet_jax.runtime.errors import NotFoundError, UserError, setting_name

# What an evaluation takes where no split is named, the first that is there.
EVAL_SPLITS = ("val", "validation", "valid", "test")
# A word of a folder's name by which it is a part of a data set rather than a class.
_SPLIT_WORD = re.compile(
  r"(^|[^a-z])(train|training|val|valid|validation|test|testing|eval|evaluation|dev"
  r"|pred|prediction|holdout)([^a-z]|$)"
)


def find_root(config_dir: str) -> Path:
  """Returns the folder or table that `config.data.dir` names.

  Raises:
    ValueError: it names none.
  """
  if not config_dir:
    raise UserError(
      f"{setting_name('data.dir')}='' must be a folder or .csv file with "
      f"{setting_name('data.name')}='folder'"
    )
  return Path(os.path.expanduser(config_dir))


def list_splits(root: Path) -> list[str]:
  """Returns the splits that a folder or table of images has.

  Raises:
    FileNotFoundError: there is no such folder or table.
  """
  if not root.exists():
    raise NotFoundError(
      f"no {setting_name('data.dir')}={str(root)!r}: name a folder with a folder for "
      "each class, "
      "or a .csv file of path,label"
    )
  if root.is_file():
    return sorted({row.split for row in _read_table(root)} - {""}) or _PARTS
  return list(_split_folders(root)) or _PARTS


def _split_folders(root: Path) -> dict[str, str]:
  """Returns the folders of the splits by the splits' names, whatever their case.

  A class may be called "train" or "test": folders are splits if one of them holds
  folders.
  """
  # Tiny-ImageNet's test images have no labels.
  tiny = (root / "wnids.txt").is_file()
  known = _PARTS if tiny else ["train", *EVAL_SPLITS]
  found: dict[str, str] = {}
  for name in sub_folders(root):
    if name.lower() in known:
      if name.lower() in found:
        raise UserError(
          f"{str(root)!r} has both {found[name.lower()]} and {name}; rename or remove "
          "one"
        )
      found[name.lower()] = name
  if not any(sub_folders(root / name) for name in found.values()):
    return {}
  return {split: found[split] for split in known if split in found}


def list_images(
  root: Path, split: str, val_share: float, class_names: Sequence[str] = ()
) -> FileList:
  """Lists a split.

  Args:
    root: a folder, or a .csv file with the columns path, label and, if wanted, split;
      a label is a class index if all are whole numbers, else a class name.
    split: one of `list_splits`, or "" for the first of `EVAL_SPLITS`.
    val_share: of images whose layout has no splits: the share of each class that is
      "val", drawn by a hash of the file's name; "train" is the rest.
    class_names: in the order of their labels; else those of "train", sorted.

  Raises:
    ValueError: no such split, a class that has no images or that is not among
      `class_names`, or a table that is none.
    FileNotFoundError: there is no such folder or table.
  """
  splits = list_splits(root)
  if not split:
    split = next((name for name in EVAL_SPLITS if name in splits), "")
  if not split:
    raise UserError(
      f"{str(root)!r} has {', '.join(splits)} and no split to evaluate: add one of "
      f"{', '.join(EVAL_SPLITS)}, or name a folder with the classes to have a part of "
      "it drawn"
    )
  if root.is_file():
    _check_split(split.lower(), splits, root)
    return _list_table(root, split.lower(), val_share, class_names)
  folders = _split_folders(root)
  # Any folder of folders may be named as a split.
  folder = folders.get(split.lower(), split)
  if (root / "wnids.txt").is_file() and folders:
    _check_split(split.lower(), splits, root)
    return _list_tiny_imagenet(root, split.lower(), folder)
  if split.lower() not in folders and not _holds_folders(root / split):
    _check_split(split, splits, root)
    _check_not_splits(root)
    return _part(_list_folder(root, class_names or _classes(root)), split, val_share)
  first = root / folders.get("train", folder)
  files = _list_folder(root / folder, class_names or _classes(first))
  others = [name for name in sub_folders(root) if name not in folders.values()]
  files.left_out += tuple(f"the folder {name!r}" for name in others if name != folder)
  return files


def _check_split(split: str, splits: Sequence[str], root: Path) -> None:
  if split not in splits:
    raise UserError(
      f"{split_name()}={split!r} is not in {str(root)!r}; "
      f"there are: {', '.join(splits)}"
    )


def _holds_folders(folder: Path) -> bool:
  return folder.is_dir() and not count_images(folder) and bool(sub_folders(folder))


def _check_not_splits(root: Path) -> None:
  """Raises `UserError` if the folders that would be classes are rather splits."""
  classes = sub_folders(root)
  below = [set(sub_folders(root / name)) for name in classes]
  repeated = len(below) > 1 and len(set().union(*below)) < sum(map(len, below))
  nested = not any(count_images(root / name) for name in classes)
  named = all(_SPLIT_WORD.search(name.lower()) for name in classes)
  if classes and (named or (nested and repeated)):
    raise UserError(
      f"the folders {', '.join(classes[:3])} in {str(root)!r} look like splits, not "
      "like classes: each split must have a folder of images for each class; name "
      f"them in {setting_name('data.train_split')} and "
      f"{setting_name('data.eval_split')}, or list the images in a .csv file"
    )
