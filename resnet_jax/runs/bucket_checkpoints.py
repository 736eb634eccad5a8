"""Checkpoints in a bucket: copies of those that Orbax saved on this machine.

Orbax needs folders that can be renamed, which buckets do not have. So it saves to a
local folder, and the files are copied. The file with the digests of all others is
copied last: a checkpoint without it does not exist.
"""

import json
from collections.abc import Collection
from typing import Any

from etils import epath

from resnet_jax.runtime.buckets import BucketPath

DIGESTS = "digests.json"
# Orbax's own mark, for runs of early versions, in which it saved to gs:// by itself.
_MARKS = (DIGESTS, "commit_success.txt")


def complete_steps(checkpoints: BucketPath) -> list[int]:
  """Returns the steps of complete checkpoints, in increasing order."""
  found = set()
  for name in checkpoints.names():
    step, _, rest = name.partition("/")
    if step.isdecimal() and rest in _MARKS:
      found.add(int(step))
  return sorted(found)


def upload(local: epath.Path, stored: BucketPath, parts: Collection[str] = ()) -> None:
  """Copies a checkpoint to a bucket; it exists as soon as all of it is there.

  Args:
    local: its folder on this machine, with digests.
    stored: its path in the bucket.
    parts: the parts to copy, such as "metrics"; empty is all.
  """
  names = [
    str(path.relative_to(local))
    for folder, _, files in local.walk()
    for path in (folder / file for file in files)
  ]
  is_wanted = [not parts or name.split("/")[0] in parts for name in names]
  first = [name for name, wanted in zip(names, is_wanted, strict=True) if wanted]
  stored.upload(local, [name for name in first if name != DIGESTS])
  stored.upload(local, [DIGESTS])


def download(stored: BucketPath, local: epath.Path) -> None:
  """Copies a checkpoint to this machine. Files that are missing are left out."""
  names = stored.names()
  if DIGESTS in names:
    # An upload that was cut can leave files that belong to no part.
    known = _digests(stored)
    names = [n for n in names if n in known or n.endswith(("_METADATA", DIGESTS))]
  stored.download(local, names)


def delete(stored: BucketPath) -> None:
  """Deletes a checkpoint, its marks first."""
  stored.rmtree(first=_MARKS)


def delete_unfinished(checkpoints: BucketPath) -> None:
  """Deletes checkpoints whose upload or deletion was cut."""
  complete = set(map(str, complete_steps(checkpoints)))
  for path in checkpoints.iterdir():
    if path.name not in complete:
      path.rmtree()


def set_aside(stored: BucketPath, aside: BucketPath) -> None:
  """Moves a checkpoint to another path of the bucket."""
  stored.copy_tree(aside)
  delete(stored)


def _digests(stored: BucketPath) -> Collection[str]:
  """Returns the files with a digest; all files if they cannot be read."""
  try:
    found: Any = json.loads((stored / DIGESTS).read_text())
    return dict(found)
  except (ValueError, TypeError):
    return stored.names()
