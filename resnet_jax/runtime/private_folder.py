"""The user's cache folder, and folders whose files are run as code.

Only their owner may write to the latter.
"""

import os
from pathlib import Path


def cache_dir() -> Path:
  """Returns the folder where this package keeps what it can make again.

  Raises:
    RuntimeError: the user has no home folder.
  """
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "resnet_jax"


def private_folder(folder: Path) -> Path:
  """Checks that only this user can write to a folder; creates it with mode 0700.

  The returned path names the folder by a descriptor that stays open, so it always leads
  to this folder. For this reason the parent folders, which another user may be able to
  rename or replace, are not checked. Without /proc (macOS), the path is `folder`
  itself, and the parent folders are trusted.

  Returns:
    A path to the folder that is valid in this process only.

  Raises:
    OSError: the folder cannot be made or read, is a link, belongs to another user, or
      its group or others can write there.
  """
  if folder.is_symlink():
    raise PermissionError(f"{folder} is a link; make it a folder")
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
  info = os.fstat(descriptor)
  if not is_private(info):
    os.close(descriptor)
    if info.st_uid != os.getuid():
      raise PermissionError(f"{folder} belongs to another user (uid {info.st_uid})")
    raise PermissionError(
      f"other users can write in {folder} (mode {info.st_mode & 0o777:o}): delete it, "
      f"or, if you trust what is there, chmod go-w {folder}"
    )
  by_descriptor = Path(f"/proc/self/fd/{descriptor}")
  return by_descriptor if by_descriptor.is_dir() else folder


def is_private(info: os.stat_result) -> bool:
  """Whether this user owns a file or folder, and nobody else can write to it."""
  return info.st_uid == os.getuid() and not info.st_mode & 0o022
