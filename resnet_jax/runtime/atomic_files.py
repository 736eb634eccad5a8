"""Atomic files and folders: one is written completely or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yields the path of an empty file that replaces `path` at the end.

  `~` in `path` is expanded. After an error, the new file is removed, and `path` is
  unchanged.

  Raises:
    OSError: the file cannot be written.
  """
  path = os.path.expanduser(path)
  part = f"{path}.{os.getpid()}.part"
  open(part, "xb").close()
  try:
    yield part
    os.replace(part, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(part)


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[Path]:
  """Yields an empty folder that becomes `path` at the end.

  `~` in `path` is expanded, and the folders above it are made. An existing folder is
  filled, not replaced: it may be a link, a mounted disk, or the current folder. After
  an error or Ctrl-C, all that was made is removed.

  Raises:
    OSError: the folder cannot be written, or `path` exists and is not empty.
  """
  path = os.path.abspath(os.path.expanduser(path))
  exists = os.path.isdir(path)
  name = f".{os.getpid()}.part"
  part = Path(path, name) if exists else Path(path + name)
  missing = [folder for folder in part.parents if not folder.exists()]
  part.mkdir(parents=True)
  try:
    yield part
    if not exists:
      os.rename(part, path)
    elif os.listdir(path) != [name]:
      raise FileExistsError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
    else:
      for file in sorted(os.listdir(part)):
        os.rename(part / file, os.path.join(path, file))
  finally:
    shutil.rmtree(part, ignore_errors=True)
    for folder in missing:
      with contextlib.suppress(OSError):  # It is not empty.
        folder.rmdir()


def write_text(path: Path, text: str) -> None:
  """Writes a UTF-8 file completely or not at all.

  Characters that UTF-8 cannot encode, as in some names of files, become "?".
  """
  with replacing(str(path)) as part:
    Path(part).write_text(text, encoding="utf-8", errors="replace")
