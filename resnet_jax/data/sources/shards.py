"""Finds the files of a data set that is stored in shards, and their splits.

A shard is a file with many images, such as `train-00003-of-00010.parquet`. The files
are on this machine, or in a data set of the Hugging Face hub.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from resnet_jax.data.sources.file_list import is_left_over
from resnet_jax.runtime import hugging_face
from resnet_jax.runtime.errors import NotFoundError, UserError, setting_name

# The words that name a split in the name of a file or folder -> the name of the split.
_SPLITS = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("validation", "valid", "val", "dev", "evaluation"), "validation"),
  **dict.fromkeys(("test", "testing"), "test"),
}
_WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(_SPLITS)})(?=[^a-z]|$)")
_NUMBER = re.compile(r"[-_.]?(\d+)(?:-of-(\d+))?$")


@runtime_checkable
class Shards(Protocol):
  """Files with images.

  Attributes:
    names: their paths below the place where they are, with "/", sorted.
    place: where they are, for messages.
  """

  @property
  def names(self) -> Sequence[str]: ...

  @property
  def place(self) -> str: ...

  def local(self, names: Sequence[str]) -> list[Path]:
    """Returns the paths of some files on this machine; fetches missing ones."""


class _LocalShards:
  def __init__(self, place: str, suffix: str):
    self.place = place
    root = Path(os.path.expanduser(place))
    if not root.exists():
      raise NotFoundError(
        f"no {setting_name('data.dir')}={place!r}: name a folder with {suffix} files, "
        "or one such file"
      )
    self._root = root if root.is_dir() else root.parent
    found = sorted(_files_below(root, suffix)) if root.is_dir() else [root]
    self.names = [path.relative_to(self._root).as_posix() for path in found]

  def local(self, names: Sequence[str]) -> list[Path]:
    return [self._root / name for name in names]


class _HubShards:
  def __init__(self, place: str, suffix: str):
    self.place = place
    self._set = hugging_face.find_data_set(place, suffix)
    self.names = sorted(self._set.files)

  def local(self, names: Sequence[str]) -> list[Path]:
    return self._set.fetch(names)


def _files_below(root: Path, suffix: str) -> list[Path]:
  """Returns the files of a suffix in a folder and its subfolders, without links."""
  found = []
  for folder, folders, files in os.walk(root):
    folders[:] = [name for name in folders if not is_left_over(name)]
    found += [
      Path(folder, name)
      for name in files
      if name.endswith(suffix) and not is_left_over(name)
    ]
  return found


def has_shards(place: str, suffix: str) -> bool:
  """Whether a path is a file of this suffix, or a folder with such files.

  Only the folder and its subfolders are read, not what is below them.
  """
  root = Path(os.path.expanduser(place))
  if not root.is_dir():
    return root.is_file() and root.name.endswith(suffix)
  return any(
    not is_left_over(path.name)
    for level in ("*", "*/*")
    for path in root.glob(level + suffix)
  )


def find_shards(place: str, suffix: str) -> Shards:
  """Finds the files of a data set.

  Args:
    place: a file, a folder, or `hf://datasets/owner/name[@revision]`.
    suffix: of the files, such as ".parquet".

  Raises:
    NotFoundError: there are none.
    UserError: the hub cannot be used; see `hugging_face.find_data_set`.
  """
  is_hub = hugging_face.is_data_set(place)
  shards: Shards = (_HubShards if is_hub else _LocalShards)(place, suffix)
  if not shards.names:
    raise NotFoundError(
      f"{setting_name('data.dir')}={place!r} has no {suffix} files; name a folder that "
      "has some"
    )
  return shards


def by_split(shards: Shards) -> dict[str, list[str]]:
  """Returns the names of the files of each split.

  The split is a word in the name of the file, such as "train" in
  `train-00000-of-00002.parquet`, or else in the name of a folder. "val" and "valid"
  mean "validation". A file without such a word belongs to a split of its own name, less
  the number of the shard.

  Raises:
    UserError: files of a split are missing, or are in several folders.
  """
  found: dict[str, list[str]] = defaultdict(list)
  for name in shards.names:
    found[_split_of(name)].append(name)
  for split, names in found.items():
    folders = sorted({str(PurePosixPath(name).parent) for name in names})
    if len(folders) > 1:
      raise UserError(
        f"{shards.place!r} has files of the split {split!r} in the folders "
        f"{', '.join(folders[:4])}; they may be different data sets: name one of the "
        f"folders in {setting_name('data.dir')}"
      )
    _check_complete(shards.place, names)
  return dict(found)


def plain_split(split: str) -> str:
  """Returns the name that `by_split` gives to a split: "val" becomes "validation"."""
  return _SPLITS.get(split.lower(), split)


def _split_of(name: str) -> str:
  *folders, file = PurePosixPath(name).parts
  stem = _NUMBER.sub("", file.split(".")[0])
  for part in (stem, *reversed(folders)):
    if found := _WORD.search(part.lower()):
      return _SPLITS[found[1]]
  return stem or (folders[-1] if folders else "")


def _check_complete(place: str, names: Sequence[str]) -> None:
  """Raises `UserError` if "-of-00010" says that there are more files."""
  numbers = [_NUMBER.search(PurePosixPath(name).name.split(".")[0]) for name in names]
  counts = {int(number[2]) for number in numbers if number and number[2]}
  if counts and counts != {len(names)}:
    raise UserError(
      f"{place!r} is incomplete: of the {max(counts)} files of {names[0]!r} there are "
      f"{len(names)}; copy or download the others"
    )
