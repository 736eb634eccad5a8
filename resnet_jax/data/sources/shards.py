"""Finds the files of a data set that is stored in shards, and their splits.

A shard is a file with many images, such as `train-00003-of-00010.parquet`. The files
are on this machine, or in a data set of the Hugging Face Hub.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from resnet_jax.data.sources.file_list import files_below
from resnet_jax.runtime import hugging_face
from resnet_jax.runtime.errors import NotFoundError, UserError, setting_name
from resnet_jax.runtime.terminal import warn

# The words that name a split in the name of a file or folder -> the name of the split.
# These are the words of Hugging Face's `datasets`.
_SPLITS = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
  **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(_SPLITS)})(?=[^a-z]|$)")
# The number of a shard. `datasets` may add a hash of the content.
_NUMBER = re.compile(r"[-_.]?(\d+)(?:-of-(\d+))?(?:-[0-9a-f]{8,})?$")
# The folders in which the Hub and `datasets` put the files of a data set.
_USUAL_FOLDERS = "", "data", "default", "plain_text"


class Shards(NamedTuple):
  """Files with images.

  Attributes:
    place: where they are, for messages.
    names: their paths below that place, with "/", sorted.
    local: (some of the names) -> their paths on this machine. Missing files are
      fetched.
  """

  place: str
  names: Sequence[str]
  local: Callable[[Sequence[str]], list[Path]]


def find_shards(place: str, suffix: str) -> Shards:
  """Finds the files of a data set.

  Args:
    place: a file, a folder, or a data set of the Hub, see `hugging_face.find_data_set`.
    suffix: of the files, such as ".parquet".

  Raises:
    NotFoundError: there are none.
    UserError: `place` is empty, or the Hub cannot be used.
  """
  if hugging_face.is_data_set(place):
    found = hugging_face.find_data_set(place, suffix)
    return Shards(place, sorted(found.files), found.fetch)
  setting = f"{setting_name('data.dir')}={place!r}"
  root = Path(os.path.expanduser(place))
  if not place or not root.exists():
    raise NotFoundError(
      f"no {setting}: name a folder with {suffix} files, or one such file"
    )
  names = [root.name] if root.is_file() else _names_below(root, suffix)
  if not names:
    raise NotFoundError(f"{setting} has no {suffix} files; name a folder that has some")
  parent = root.parent if root.is_file() else root
  return Shards(place, names, lambda names: [parent / name for name in names])


def _names_below(root: Path, suffix: str) -> list[str]:
  skip = len(root.name) + 1
  return sorted(
    name[skip:] for name in files_below(root.absolute()) if name.endswith(suffix)
  )


def folder_of(name: str, place: str, suffix: str) -> str:
  """Returns the folder below `place` that holds the shards of a data set; "" if none.

  Files elsewhere below `place` may be of other data sets.

  Args:
    name: of the data set.
    place: a file or a folder.
    suffix: of the files.
  """
  root = Path(os.path.expanduser(place))
  if root.is_file():
    return place if root.name.endswith(suffix) else ""
  for folder in (*_USUAL_FOLDERS, name):
    splits = (root / folder / split for split in ("", *_SPLITS))
    if any(any(split.glob(f"[!.]*{suffix}")) for split in splits):
      return os.path.join(place, folder) if folder else place
  return ""


def by_split(shards: Shards) -> dict[str, list[str]]:
  """Returns the names of the files of each split.

  `datasets` writes files such as `train_small-00000-of-00002.parquet`; their split is
  the part before the number. In other names, the split is a word, such as "train" in
  `photos-train-0.tar`, or else a word in the name of a folder. "val" and "valid" mean
  "validation". A file without such a word belongs to a split of its own name, less the
  number of the shard.

  Raises:
    UserError: files of a split are missing, or seem to be of several data sets.
  """
  found: dict[str, list[str]] = defaultdict(list)
  for name in shards.names:
    found[_split_of(name)].append(name)
  for split, names in found.items():
    _check_one_set(shards.place, split, names)
    _check_complete(shards.place, names)
  first = {name: i for i, name in enumerate(("train", "validation", "test"))}
  return dict(sorted(found.items(), key=lambda item: first.get(item[0], len(first))))


def plain_split(split: str) -> str:
  """Returns the name that `by_split` gives to a split: "val" becomes "validation"."""
  return _SPLITS.get(split.lower(), split)


def _stem(name: str) -> str:
  """Returns the name of a file without its folders, number and suffix."""
  return _NUMBER.sub("", PurePosixPath(name).name.split(".")[0])


def _number(name: str) -> re.Match[str] | None:
  return _NUMBER.search(PurePosixPath(name).name.split(".")[0])


def _split_of(name: str) -> str:
  folders, stem, number = PurePosixPath(name).parent.parts, _stem(name), _number(name)
  if number and number[2] and re.fullmatch(r"\w+", stem):
    return plain_split(stem)
  for part in (stem, *reversed(folders)):
    if found := _WORD.search(part.lower()):
      return _SPLITS[found[1]]
  return stem or (folders[-1] if folders else "")


def _check_one_set(place: str, split: str, names: Sequence[str]) -> None:
  """Raises `UserError` if the files of a split are in several folders, or series."""
  folders = sorted({PurePosixPath(name).parent.parts for name in names})
  stems = sorted({stem for stem in map(_stem, names) if _WORD.search(stem.lower())})
  depths = range(max(map(len, folders)))
  common = next((n for n in depths if len({x[: n + 1] for x in folders}) > 1), 0)
  first = dict.fromkeys("/".join(parts[: common + 1]) or "." for parts in folders)
  for kind, found in (("in the folders", [*first]), ("with the names", stems)):
    if len(found) > 1:
      raise UserError(
        f"{place!r} has files of the split {split!r} {kind} {', '.join(found[:4])}, "
        "which may be different data sets; name a folder with one of them in "
        f"{setting_name('data.dir')}"
      )
  if any(part.startswith("partial-") for part in folders[0]):
    warn(
      f"{place!r} has a part of the split {split!r}: the Hub has converted its "
      "beginning only"
    )


def _check_complete(place: str, names: Sequence[str]) -> None:
  """Raises `UserError` if "-of-00010" says that there are more files."""
  counts = {int(n[2]) for n in map(_number, names) if n and n[2]}
  if counts and counts != {len(names)}:
    raise UserError(
      f"{place!r} is incomplete: of the {max(counts)} files of {names[0]!r} there are "
      f"{len(names)}; copy or download the others"
    )
