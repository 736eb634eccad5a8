"""Access to the Hugging Face Hub, and the files of its data sets."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import re
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.runtime.private_folder import cache_dir

_DATA_SETS = "hf://datasets/"
_FORM = f"{_DATA_SETS}owner/name[@revision][/folder]"
# A revision is a commit, a tag, or a branch. These two kinds of branches have a "/".
_REVISION = r"@((?:refs/(?:convert|pr)/)?[^/@]+)"
_NAME = re.compile(
  rf"{_DATA_SETS}([^/@]+/[^/@]+)(?:{_REVISION})?(?:/([^@]*))?(?:{_REVISION})?"
)
# The hub keeps a copy of each data set in parquet here.
_CONVERTED = "refs/convert/parquet"


def import_hub(name: str) -> Any:
  """Returns the module huggingface_hub; `name` is what needs it, for the error."""
  try:
    import huggingface_hub
    import huggingface_hub.utils.logging as hub_logging
  except ModuleNotFoundError as error:
    raise UserError(
      f"{name} needs huggingface_hub: pip install 'flax-resnet[hf]'"
    ) from error
  hub_logging.set_verbosity(logging.ERROR)  # Hides retries.
  return huggingface_hub


def is_data_set(name: str) -> bool:
  """Whether a name is one of a data set on the Hub."""
  return name.startswith(_DATA_SETS)


@dataclasses.dataclass(frozen=True)
class HubDataSet:
  """A revision of a data set on the Hub.

  Attributes:
    name: `hf://datasets/owner/name[@revision][/folder]`.
    repo: "owner/name".
    revision: hash of the commit.
    is_online: whether the Hub can be reached.
    folder: path of the folder in the data set, "" or with "/" at its end.
    files: paths of its files, below the folder.
  """

  name: str
  repo: str
  revision: str
  is_online: bool
  folder: str
  files: tuple[str, ...]

  def fetch(self, files: Sequence[str]) -> list[Path]:
    """Downloads files into the cache of huggingface_hub; returns their paths there."""
    hub = import_hub(self.name)
    download = functools.partial(
      hub.hf_hub_download,
      self.repo,
      repo_type="dataset",
      revision=self.revision,
      local_files_only=not self.is_online,
    )
    try:
      with ThreadPoolExecutor(8) as pool:
        found = pool.map(download, [self.folder + file for file in files])
        return [Path(path) for path in found]
    except Exception as error:
      raise _refusal(hub, self.name, error) from error


def find_data_set(name: str, suffix: str) -> HubDataSet:
  """Lists the files of a data set.

  If no file ends in ".parquet", the Hub's own copy in parquet is taken. If the Hub
  cannot be reached, the files in the cache are taken.

  Args:
    name: `hf://datasets/owner/name[@revision][/folder]`. The revision may also be at
      the end, and a file may take the place of the folder.
    suffix: of the files, such as ".parquet".

  Raises:
    NotFoundError: there is no such data set, or no such file in it.
    UserError: the name is not of this form, huggingface_hub is missing, or the Hub
      refuses.
  """
  parts = _NAME.fullmatch(name)
  if not parts or (parts[2] and parts[4]):
    raise UserError(f"{name!r} must be {_FORM}")
  repo, path = parts[1], (parts[3] or "").strip("/")
  asked = urllib.parse.unquote(parts[2] or parts[4] or "")
  folder = path.rpartition("/")[0] if path.endswith(suffix) else path
  folder = folder and folder + "/"
  hub = import_hub(name)

  def find(revision: str) -> HubDataSet:
    files, commit, is_online = _list(hub, repo, revision)
    found = [file for file in files if file.endswith(suffix)]
    start = path if path.endswith(suffix) else folder
    below = (file.removeprefix(folder) for file in found if file.startswith(start))
    return HubDataSet(name, repo, commit, is_online, folder, tuple(below))

  try:
    found = find(asked)
    if not found.files and suffix == ".parquet" and not asked:
      found = find(_CONVERTED)
  except Exception as error:
    raise _refusal(hub, name, error) from error
  if not found.files:
    raise NotFoundError(f"{name} has no {suffix} files")
  return found


def _list(hub: Any, repo: str, revision: str) -> tuple[list[str], str, bool]:
  """Returns the files of a data set, the hash of its commit, and True.

  If the Hub cannot be reached, the last element is False. The files are then those that
  it listed before, or else those in the cache.
  """
  key = hashlib.blake2b(f"{repo}@{revision}".encode(), digest_size=16).hexdigest()
  try:
    info = hub.HfApi().dataset_info(repo, revision=revision or None)
  except Exception as error:
    response = getattr(error, "response", None)
    # A response of `requests` is false if its status is an error.
    is_answer = response is not None and response.status_code < 500
    if is_answer or not _is_of_connection(error):
      raise  # The name is wrong, or the data set needs a login.
  else:
    files = [file.rfilename for file in info.siblings or ()]
    with contextlib.suppress(OSError, RuntimeError):
      stored = _listing(key)
      stored.parent.mkdir(parents=True, exist_ok=True)
      with replacing(str(stored)) as part:
        Path(part).write_text(json.dumps([files, info.sha]))
    return files, info.sha, True
  with contextlib.suppress(OSError, RuntimeError, ValueError):
    files, commit = json.loads(_listing(key).read_bytes())
    return files, commit, False
  root = Path(
    hub.snapshot_download(
      repo, repo_type="dataset", revision=revision or None, local_files_only=True
    )
  )
  files = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
  return files, root.name, False


def _listing(key: str) -> Path:
  """Returns the file with a list of files, which huggingface_hub does not keep."""
  return cache_dir() / "hub_listings" / f"{key}.json"


def _is_of_connection(error: Exception) -> bool:
  # The errors of httpx have no other base class.
  return isinstance(error, OSError) or type(error).__module__.startswith("httpx")


def _refusal(hub: Any, name: str, error: Exception) -> Exception:
  """Returns a `UserError` for an error of the Hub, and other errors unchanged."""
  if isinstance(error, hub.errors.LocalEntryNotFoundError):
    return NotFoundError(
      f"{name}: the Hub cannot be reached, and its cache here does not have the files"
    )
  if isinstance(error, hub.errors.HfHubHTTPError):
    status = getattr(error.response, "status_code", None)
    advice = "; log in by `hf auth login`" if status in (401, 403) else ""
    return NotFoundError(f"{name} was not found: {str(error).splitlines()[0]}{advice}")
  if isinstance(error, ValueError) or _is_of_connection(error):
    return UserError(f"{name} cannot be read: {str(error)[:200]}")
  return error
