"""Access to the Hugging Face hub, and the files of its data sets."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_jax.runtime.errors import NotFoundError, UserError

_DATA_SETS = "hf://datasets/"
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
  """Whether a name is one of a data set on the hub."""
  return name.startswith(_DATA_SETS)


@dataclasses.dataclass(frozen=True)
class HubDataSet:
  """A revision of a data set on the hub.

  Attributes:
    name: `hf://datasets/owner/name[/folder][@revision]`.
    repo: "owner/name".
    revision: hash of the commit.
    is_online: whether the hub can be reached.
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
    try:
      return [
        Path(
          hub.hf_hub_download(
            self.repo,
            self.folder + file,
            repo_type="dataset",
            revision=self.revision,
            local_files_only=not self.is_online,
          )
        )
        for file in files
      ]
    except Exception as error:
      raise _refusal(hub, self.name, error) from error


def find_data_set(name: str, suffix: str) -> HubDataSet:
  """Lists the files of a data set.

  If there are none of the suffix, the copy in parquet that the hub makes of each data
  set is taken. If the hub cannot be reached, the files in the cache are taken.

  Args:
    name: `hf://datasets/owner/name[/folder][@revision]`.
    suffix: of the files, such as ".parquet".

  Raises:
    NotFoundError: there is no such data set, or no such file in it.
    UserError: the name is not of this form, huggingface_hub is missing, or the hub
      refuses.
  """
  path, _, revision = name.removeprefix(_DATA_SETS).partition("@")
  owner, _, rest = path.rstrip("/").partition("/")
  repo, _, folder = rest.partition("/")
  if not is_data_set(name) or not owner or not repo:
    raise UserError(f"{name!r} must be {_DATA_SETS}owner/name[/folder][@revision]")
  repo, folder = f"{owner}/{repo}", folder and folder + "/"
  hub = import_hub(name)

  def find(revision: str) -> HubDataSet:
    files, commit, is_online = _list(hub, repo, revision)
    found = (f for f in files if f.startswith(folder) and f.endswith(suffix))
    below = tuple(file.removeprefix(folder) for file in found)
    return HubDataSet(name, repo, commit, is_online, folder, below)

  try:
    found = find(revision)
    if not found.files and suffix == ".parquet" and not (revision or folder):
      found = find(_CONVERTED)
  except Exception as error:
    raise _refusal(hub, name, error) from error
  if not found.files:
    raise NotFoundError(f"{name} has no {suffix} files")
  return found


def _list(hub: Any, repo: str, revision: str) -> tuple[list[str], str, bool]:
  """Returns the files of a data set, the hash of its commit, and True.

  If the hub cannot be reached, these are the files in the cache, their commit, False.
  """
  try:
    info = hub.HfApi().dataset_info(repo, revision=revision or None)
  except Exception as error:
    response = getattr(error, "response", None)
    if not _is_of_connection(error) or (response and response.status_code < 500):
      raise  # The hub answers: the name is wrong, or it needs a login.
  else:
    return [file.rfilename for file in info.siblings or ()], info.sha, True
  root = Path(
    hub.snapshot_download(
      repo, repo_type="dataset", revision=revision or None, local_files_only=True
    )
  )
  files = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
  return files, root.name, False


def _is_of_connection(error: Exception) -> bool:
  # The errors of httpx have no other base class.
  return isinstance(error, OSError) or type(error).__module__.startswith("httpx")


def _refusal(hub: Any, name: str, error: Exception) -> Exception:
  """Returns a `UserError` for an error of the hub, and other errors unchanged."""
  if isinstance(error, hub.errors.LocalEntryNotFoundError):
    return NotFoundError(
      f"{name}: the hub cannot be reached, and its cache here does not have the files"
    )
  if isinstance(error, hub.errors.HfHubHTTPError):
    status = getattr(error.response, "status_code", None)
    advice = "; log in by `hf auth login`" if status in (401, 403) else ""
    return NotFoundError(f"{name} was not found: {str(error).splitlines()[0]}{advice}")
  if isinstance(error, ValueError) or _is_of_connection(error):
    return UserError(f"{name} cannot be read: {str(error)[:200]}")
  return error
