"""Where weights lie: in a file, in a folder, on the Hugging Face hub."""

import contextlib
import logging
from pathlib import Path

from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.weights import config_files

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar")
HF_FILES = ("model.safetensors", "pytorch_model.bin")


def find(path: str | Path) -> Path:
  """Returns the local file of a path or of `hf://owner/name[/file][@revision]`.

  Those are fetched by huggingface_hub into its cache. In a repository, and in a folder
  that is a copy of one, `model.safetensors` comes before `pytorch_model.bin`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: not a file of weights, or `hf://` without huggingface_hub.
  """
  name = str(path)
  if name.startswith("hf://"):
    return _fetch(name)
  path = Path(path)
  if path.is_dir():
    found = [path / file for file in HF_FILES if (path / file).is_file()]
    if not found:
      raise NotFoundError(
        f"the folder {name!r} holds no weights: no {' or '.join(HF_FILES)}"
      )
    return found[0]
  if not path.is_file():
    raise NotFoundError(f"no file of weights at {name!r}")
  if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
    raise UserError(
      f"{name!r} must end in .safetensors, {', '.join(TORCH_SUFFIXES)}, or be "
      "hf://owner/name"
    )
  return path


def is_run(path: str | Path) -> bool:
  """Whether a path that exists is a directory of a run, not one of weights."""
  path = Path(path)
  has_weights = any((path / file).is_file() for file in HF_FILES)
  # Weights of a run may be kept in its own directory.
  return path.is_dir() and (not has_weights or (path / "checkpoints").exists())


def _fetch(name: str) -> Path:
  try:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
  except ModuleNotFoundError as error:
    raise UserError(
      f"{name} needs huggingface_hub: pip install 'flax-resnet[hf]'"
    ) from error
  path, _, revision = name.removeprefix("hf://").partition("@")
  owner, _, rest = path.partition("/")
  repo, _, file = rest.partition("/")
  if not owner or not repo:
    raise UserError(f"{name!r} must be hf://owner/name, or hf://owner/name/file")
  logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # Else each retry.
  reasons = []

  def fetch(file: str) -> Path:
    found = huggingface_hub.hf_hub_download(
      f"{owner}/{repo}", file, revision=revision or None
    )
    return Path(found)

  for candidate in [file] if file else HF_FILES:
    try:
      found = fetch(candidate)
    except (HfHubHTTPError, ValueError, OSError) as error:  # The name may be wrong.
      reasons.append(f"{candidate}: {str(error).splitlines()[0]}")
      continue
    for name_beside in config_files.NAMES:
      with contextlib.suppress(EntryNotFoundError):
        fetch(name_beside)
    return found
  raise NotFoundError(f"{name} was not found: {'; '.join(reasons)}")
