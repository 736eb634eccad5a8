"""Images as files: which there are, of which class, in which split.

Four layouts: a folder for each class, below `train/`, `val/` ... or with no splits;
Tiny-ImageNet's own; and a table of paths and labels.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.data.sources.base import split_name
from resnet_jax.data.sources.file_list import _PARTS, FileList, _classes, _list_folder
from resnet_jax.data.sources.tables import _list_table, _part, _read_table
from resnet_jax.data.sources.tiny_imagenet import _list_tiny_imagenet
from resnet_jax.runtime.errors import NotFoundError, UserError, setting_name

# What an evaluation takes where no split is named, the first that is there.
EVAL_SPLITS = ("val", "validation", "valid", "test")


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
  # Tiny-ImageNet's test images have no labels.
  tiny = (root / "wnids.txt").is_file()
  names = _PARTS if tiny else ["train", *EVAL_SPLITS]
  return [name for name in names if (root / name).is_dir()] or _PARTS


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
  if split not in splits:
    raise UserError(
      f"{split_name()}={split!r} is not in {str(root)!r}; "
      f"there are: {', '.join(splits)}"
    )
  if root.is_file():
    return _list_table(root, split, val_share, class_names)
  if (root / "wnids.txt").is_file():
    return _list_tiny_imagenet(root, split)
  if (root / split).is_dir():
    folder = root / ("train" if "train" in splits else split)
    return _list_folder(root / split, class_names or _classes(folder))
  return _part(_list_folder(root, class_names or _classes(root)), split, val_share)
