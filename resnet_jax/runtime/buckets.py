"""Files in a bucket, `s3://BUCKET/PATH` or `gs://BUCKET/PATH`, through fsspec.

A bucket replaces a file as a whole or not at all. It has no folders: a folder exists if
a file is below it. Folders cannot be renamed.
"""

import contextlib
import dataclasses
import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from resnet_jax.runtime.errors import UserError

_TRANSFERS = 8  # Files that are copied at the same time.


@dataclasses.dataclass(frozen=True)
class _Store:
  """A kind of store.

  Attributes:
    module: module of the file system.
    name: class of the file system in the module.
    extra: extra of this package that installs it.
    probe: asks for one name below (bucket, prefix); `FileNotFoundError` if there is no
      such bucket.
    credentials: where the credentials come from.
  """

  module: str
  name: str
  extra: str
  probe: Callable[[Any, str, str], object]
  credentials: str


_STORES = {
  "s3": _Store(
    "s3fs",
    "S3FileSystem",
    "s3",
    lambda files, bucket, prefix: files.call_s3(
      "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1
    ),
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `aws configure`",
  ),
  "gs": _Store(
    "gcsfs.core",  # Without the experimental part, which asks for more permissions.
    "GCSFileSystem",
    "gcs",
    lambda files, bucket, prefix: files.call(
      "GET", "b/{}/o", bucket, prefix=prefix, maxResults=1, json_out=True
    ),
    "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS",
  ),
}


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path is in a bucket that this package can use."""
  scheme, separator, _ = str(path).partition("://")
  return bool(separator) and scheme in _STORES


def storage_path(path: str | os.PathLike[str]) -> epath.Path:
  """Returns a path on this machine or in a bucket."""
  return BucketPath(path) if is_remote(path) else epath.Path(path)


class BucketPath(type(epath.Path())):  # type: ignore[misc]
  """A path in a bucket, with the methods that a run needs.

  Errors of the store become an `OSError` of one line. etils' own methods are not used:
  they raise the errors of each library, and use TensorFlow where it is installed.
  """

  def exists(self) -> bool:
    """Whether there is a file at this path, or below it."""
    return self._kind() != ""

  def is_file(self) -> bool:
    """Whether there is a file at this path."""
    return self._kind() == "file"

  def is_dir(self) -> bool:
    """Whether there are files below this path."""
    return self._kind() == "directory"

  def _kind(self) -> str:
    with _plain_errors(self), contextlib.suppress(FileNotFoundError):
      return str(self._files.info(str(self))["type"])
    return ""

  def read_bytes(self) -> bytes:
    """Returns the content of the file; `FileNotFoundError` if there is none."""
    with _plain_errors(self):
      return bytes(self._files.cat_file(str(self)))

  def read_text(self, encoding: str | None = None) -> str:
    """Returns the content of the file; `FileNotFoundError` if there is none."""
    return self.read_bytes().decode(encoding or "utf-8")

  def write_bytes(self, data: bytes, new: bool = False) -> int:
    """Writes the file as a whole.

    Args:
      data: the content.
      new: `FileExistsError` if there is a file; of several writers, one succeeds.
    """
    with _plain_errors(self):
      self._files.pipe_file(str(self), data, mode="create" if new else "overwrite")
    return len(data)

  def write_text(self, text: str, encoding: str | None = None) -> int:
    """Writes the file as a whole."""
    return self.write_bytes(text.encode(encoding or "utf-8"))

  def touch(self, *_: object, **__: object) -> None:
    """Writes an empty file."""
    self.write_bytes(b"")

  def unlink(self, missing_ok: bool = False) -> None:
    """Deletes the file."""
    with contextlib.suppress(*(FileNotFoundError,) * missing_ok), _plain_errors(self):
      self._files.rm_file(str(self))

  def mkdir(self, *_: object, **__: object) -> None:
    """Does nothing: the first file below a folder creates it."""

  def names(self) -> list[str]:
    """Returns the paths of all files below this one, relative to it, in order."""
    with _plain_errors(self):
      found = self._files.find(str(self))
    start = str(self).partition("://")[2] + "/"
    below = (name.removeprefix(start) for name in found if name.startswith(start))
    return sorted(name for name in below if name and not name.endswith("/"))

  def iterdir(self) -> "Iterator[BucketPath]":
    """Yields the files and folders directly below this path."""
    names = dict.fromkeys(name.partition("/")[0] for name in self.names())
    return (self / name for name in names)

  def rmtree(self, missing_ok: bool = True, first: Iterable[str] = ()) -> None:
    """Deletes all files below this path.

    Args:
      missing_ok: as in `epath.Path`; a missing folder is no error.
      first: relative paths of files that are deleted before the others.
    """
    del missing_ok
    names = self.names()
    for group in ([name for name in names if name in first], names):
      self._in_parallel(lambda name: (self / name).unlink(missing_ok=True), group)

  def upload(self, folder: os.PathLike[str], names: Iterable[str]) -> None:
    """Copies files of a local folder to the same names below this path."""

    def put(name: str) -> None:
      with _plain_errors(self / name):
        self._files.put_file(os.path.join(folder, name), str(self / name))

    self._in_parallel(put, names)

  def download(self, folder: os.PathLike[str], names: Iterable[str]) -> None:
    """Copies files below this path to the same names in a local folder.

    Files that do not exist are left out.
    """

    def get(name: str) -> None:
      local = os.path.join(folder, name)
      os.makedirs(os.path.dirname(local), exist_ok=True)
      with contextlib.suppress(FileNotFoundError), _plain_errors(self / name):
        self._files.get_file(str(self / name), local)

    self._in_parallel(get, names)

  def copy_tree(self, target: "BucketPath") -> None:
    """Copies all files below this path, within the bucket."""

    def copy(name: str) -> None:
      with _plain_errors(target / name):
        self._files.cp_file(str(self / name), str(target / name))

    self._in_parallel(copy, self.names())

  @property
  def _files(self) -> Any:
    return _file_system(str(self).partition("://")[0])

  def _in_parallel(self, act: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
      for _ in pool.map(act, names):  # Raises the first error.
        pass


def check_bucket(path: str | os.PathLike[str], name: str) -> None:
  """Checks once in a process that the bucket of a path exists and can be read.

  Args:
    path: a path in a bucket.
    name: the user's name for it, for messages.

  Raises:
    UserError: a package is missing, or the bucket cannot be used.
  """
  scheme, _, rest = str(path).partition("://")
  store, (bucket, _, prefix) = _STORES[scheme], rest.partition("/")
  if not bucket or not prefix.strip("/"):
    raise UserError(f"{name} must be {scheme}://BUCKET/PATH")
  try:
    importlib.import_module(store.module)
  except ImportError as error:
    package = store.module.partition(".")[0]
    raise UserError(
      f"{name} needs {package}: pip install 'flax-resnet[{store.extra}]'"
    ) from error
  try:
    _probe(scheme, bucket, prefix)
  except FileNotFoundError as error:
    raise UserError(
      f"{name}: there is no bucket {bucket!r}; create it or name another one"
    ) from error
  except OSError as error:
    raise UserError(str(error)) from error


@functools.cache
def _probe(scheme: str, bucket: str, prefix: str) -> None:
  with _plain_errors(f"{scheme}://{bucket}/{prefix}"):
    _STORES[scheme].probe(_file_system(scheme), bucket, prefix)


@functools.cache
def _file_system(scheme: str) -> Any:
  """Returns fsspec's file system; it must not remember listings of the bucket."""
  # It logs tracebacks of errors that it also raises.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  store = _STORES[scheme]
  create = getattr(importlib.import_module(store.module), store.name)
  return create(use_listings_cache=False, skip_instance_cache=True)


@contextlib.contextmanager
def _plain_errors(path: object) -> Iterator[None]:
  """Turns all errors of a store into an `OSError` of one line.

  A missing file and a file that exists keep their classes.
  """
  try:
    yield
  except (FileNotFoundError, FileExistsError):
    raise
  except Exception as error:  # Each library has its own classes.
    store = _STORES[str(path).partition("://")[0]]
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    text = (
      f"{path} cannot be reached or access is refused: {reason}; check the network, "
      f"the permissions and the credentials ({store.credentials}), then run the same "
      "command again"
    )
    raised = OSError(text)
    raised.strerror = text  # So that `str` does not add a number.
    raise raised from error
