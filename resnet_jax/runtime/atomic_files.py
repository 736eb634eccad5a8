"""Atomic files and folders: one is written completely or not at all."""

import contextlib
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

  `~` in `path` is expanded, and the folders above it are made. After an error or
  Ctrl-C, the new folder is removed with all its files.

  Raises:
    OSError: the folder cannot be written, or `path` exists and is not empty.
  """
  path = os.path.normpath(os.path.expanduser(path))
  part = Path(f"{path}.{os.getpid()}.part")
  part.mkdir(parents=True)
  try:
    yield part
    with contextlib.suppress(FileNotFoundError):
      os.rmdir(path)
    os.rename(part, path)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
  """Writes a UTF-8 file completely or not at all.

  Characters that UTF-8 cannot encode, as in some names of files, become "?".
  """
  with replacing(str(path)) as part:
    Path(part).write_text(text, encoding="utf-8", errors="replace")
