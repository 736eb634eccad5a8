"""Weights on the Hugging Face hub, `hf://owner/name`: fetched and uploaded."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.runtime.hugging_face import import_hub
from resnet_jax.weights import config_files
from resnet_jax.weights.shards import INDEX, shards

_SCHEME = "hf://"


def is_hub(name: str) -> bool:
  """Whether a name is one of a repository or a file on the Hub."""
  return name.startswith(_SCHEME)


def split(name: str) -> tuple[str, str, str]:
  """Splits `hf://owner/name[/file][@revision]`.

  Returns:
    "owner/name", the file and the revision; the last two may be "".

  Raises:
    UserError: it is no such name.
  """
  path, _, revision = name.removeprefix(_SCHEME).partition("@")
  owner, _, rest = path.partition("/")
  repo, _, file = rest.partition("/")
  if not is_hub(name) or not owner or not repo:
    raise UserError(f"{name!r} must be hf://owner/name, or hf://owner/name/file")
  return f"{owner}/{repo}", file, revision


def check_repository(name: str) -> str:
  """Returns "owner/name" of `hf://owner/name[@branch]`.

  Raises:
    UserError: it is no such name, or huggingface_hub is missing.
  """
  import_hub(name)
  repo, file, _ = split(name)
  if file:
    raise UserError(f"{name!r} must be hf://owner/name, without a file")
  return repo


def fetch(name: str, candidates: Sequence[str]) -> Path:
  """Returns the local copy of a file, in the cache of huggingface_hub.

  The config files of timm and transformers, and the files that an index names, are
  fetched too.

  Args:
    name: `hf://owner/name[/file][@revision]`.
    candidates: the files to try if the name has none.

  Raises:
    NotFoundError: there is no such file, or the Hub cannot be reached.
    UserError: huggingface_hub is missing, or the name is none of the Hub.
  """
  hub = import_hub(name)
  repo, file, revision = split(name)
  reasons: list[str] = []
  missing: list[str] = []  # Files not in the cache, if the Hub cannot be reached.

  def download(file: str) -> Path:
    options = {"revision": revision or None, "local_files_only": bool(missing)}
    return Path(hub.hf_hub_download(repo, file, **options))

  for candidate in [file] if file else candidates:
    try:
      found = download(candidate)
    except hub.errors.LocalEntryNotFoundError:
      missing.append(candidate)
      continue
    # The name may be wrong.
    except (hub.errors.HfHubHTTPError, ValueError, OSError) as error:
      reasons.append(f"{candidate}: {str(error).splitlines()[0]}")
      continue
    for name_beside in config_files.NAMES:
      with contextlib.suppress(hub.errors.EntryNotFoundError):
        download(name_beside)
    if candidate.endswith(INDEX):
      for shard in shards(found):
        download(shard)
    return found
  if missing:
    reasons.append(
      f"the Hub cannot be reached, and its cache here has no {' or '.join(missing)}"
    )
  raise NotFoundError(f"{name} was not found: {'; '.join(reasons)}")


def upload(folder: Path, name: str, private: bool) -> str:
  """Uploads the files of a folder in one commit; makes the repository if needed.

  Args:
    folder: files without subfolders.
    name: `hf://owner/name[@branch]`.
    private: whether a new repository is private.

  Returns:
    The address of the repository.

  Raises:
    UserError: huggingface_hub is missing, the name is none of a repository, or the Hub
      refuses or cannot be reached.
  """
  hub = import_hub(name)
  repo, branch = check_repository(name), split(name)[2]
  api = hub.HfApi()
  try:
    api.create_repo(repo, private=private, exist_ok=True)
    if branch:
      api.create_branch(repo, branch=branch, exist_ok=True)
    done = api.upload_folder(
      repo_id=repo,
      folder_path=folder,
      revision=branch or None,
      commit_message="Upload weights",
    )
  except hub.errors.HfHubHTTPError as error:
    status = getattr(error.response, "status_code", None)
    advice = "; log in by `hf auth login`" if status in (401, 403) else ""
    raise UserError(
      f"the Hub refuses the upload to {name}: {str(error).splitlines()[0]}{advice}"
    ) from error
  except Exception as error:
    # A wrong name, or no connection. The errors of httpx have no other base class.
    is_http = type(error).__module__.startswith("httpx")
    if not is_http and not isinstance(error, ValueError | OSError):
      raise
    raise UserError(f"{name} cannot be uploaded: {str(error)[:200]}") from error
  return str(done.repo_url)
