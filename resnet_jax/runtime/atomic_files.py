"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yields the path of an empty file that becomes `path`, with ~ expanded, at the end.

  After an error it is gone, and `path` as it was.

  Raises:
    OSError: nothing can be written there.
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


def write_text(path: Path, text: str) -> None:
  """Writes a file in UTF-8 that is there whole or not at all.

  Names of files that are no UTF-8 get a "?".
  """
  with replacing(str(path)) as part:
    Path(part).write_text(text, encoding="utf-8", errors="replace")
