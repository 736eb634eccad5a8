"""Creates a new run directory, or checks the path of a given one."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

from resnet_jax.runtime.buckets import check_bucket, is_remote
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import of_first_process


@contextlib.contextmanager
def given_or_new(workdir: str | None, name: str) -> Iterator[str]:
  """Yields `workdir`; if it is None, yields that of process 0.

  If process 0 was given no directory, it creates a new one. Two runs that start at once
  never get the same new directory. A new directory is removed if it stays empty.

  Args:
    workdir: the directory that this process was given, if any.
    name: beginning of the new directory's name in `runs`; the time follows.
  """
  made = ""
  if not workdir and jax.process_index() == 0:
    made = _make_workdir(f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
  try:
    first = of_first_process(workdir or made)
    yield workdir or first
  finally:
    if made:
      with contextlib.suppress(OSError):  # It is not empty.
        os.rmdir(made)


def _make_workdir(path: str) -> str:
  """Creates a directory at `path` or, if that exists, at `path`-2, `path`-3, ..."""
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  for end in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
    with contextlib.suppress(FileExistsError):
      Path(path + end).mkdir()
      break
  return path + end


def check_storage(workdir: str | Path) -> None:
  """Checks the path of a run directory.

  Raises:
    UserError: Orbax misreads a local path, or a bucket or this kind of storage cannot
      be used.
  """
  if "://" not in str(workdir):
    path = os.path.realpath(workdir)
    if problem := _problem_of_orbax(path):
      where = "" if path == str(workdir) else f", which is {path}"
      raise UserError(
        f"Orbax cannot save to --workdir={workdir}{where}: {problem}; name another "
        "directory"
      )
    return
  if not is_remote(workdir):
    raise UserError(
      f"--workdir={workdir} must be a local path or begin with gs:// or s3://; mount "
      "other storage"
    )
  check_bucket(workdir, f"--workdir={workdir}")


def _problem_of_orbax(path: str) -> str:
  """Returns why Orbax, or a library that it uses, misreads a path; "" if it is fine."""
  if "://" in str(epath.Path(path)):
    return "it reads /gs, /s3, /az and /hf as remote storage"
  if "gs:/" in f"{path}/":
    return "it reads gs:/ as remote storage"
  if os.sep == "/" and "\\" in path:
    return "it reads a backslash as a /"
  if path != path.encode(errors="replace").decode():
    return "it takes paths in UTF-8 only"
  return ""
