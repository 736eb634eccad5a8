"""Where weights are: in the package, a file, a folder, or on the Hugging Face hub."""

import contextlib
import functools
import json
import logging
import os
import re
from pathlib import Path

from resnet_jax.config.allowed import nearest
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.weights import config_files

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar", ".ckpt")
INDEX = ".safetensors.index.json"  # Names the file of each tensor.
HF_FILES = ("model.safetensors", f"model{INDEX}", "pytorch_model.bin")
_MOST_SHARDS = 1000
# `save` wrote each of these files, and users name them without the suffix.
_TRAINED = Path(__file__).with_name("trained")


def names() -> list[str]:
  """Returns the names of the trained weights in the package."""
  return sorted(path.stem for path in _TRAINED.glob("*.safetensors"))


def check_exists(source: str | Path, setting: str = "") -> None:
  """Raises `NotFoundError` if a source is not a known name, a file or a folder.

  Args:
    source: a run or weights; `hf://owner/name` is not looked up.
    setting: text before the source in the message, such as "config.init_from=".
  """
  name = str(source)
  is_known = name.startswith("hf://") or source in names()
  if not is_known and not Path(source).exists():
    raise NotFoundError(
      f"there is no {setting}{name!r}: name a run, RUN/checkpoints/STEP, a file of "
      f"weights or hf://owner/name{_advice(name)}"
    )


def find(path: str | Path) -> Path:
  """Returns the local file of weights.

  Args:
    path: one of `names`, which must be a `str`; a file or folder; or
      `hf://owner/name[/file][@revision]`, which huggingface_hub fetches into its cache.
      In a repository or a copy of one, `model.safetensors` is preferred to
      `pytorch_model.bin`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not a file of weights, or huggingface_hub is missing for `hf://`.
  """
  name = str(path)
  if name.startswith("hf://"):
    return _fetch(name)
  if path in names():
    if Path(path).exists():
      _say(
        f"{name!r} is read from the package; write './{name}' for the file or folder "
        "of this name"
      )
    return _TRAINED / f"{name}.safetensors"
  path = Path(os.path.expanduser(path))
  if path.is_dir():
    found = [path / file for file in HF_FILES if (path / file).is_file()]
    if not found:
      raise NotFoundError(
        f"the folder {name!r} holds no weights: no {' or '.join(HF_FILES)}"
      )
    return found[0]
  if not path.is_file():
    raise NotFoundError(f"no file of weights at {name!r}{_advice(name)}")
  if not path.name.endswith((".safetensors", INDEX, *TORCH_SUFFIXES)):
    raise UserError(
      f"{name!r} must end in .safetensors, {', '.join(TORCH_SUFFIXES)}, or be "
      "hf://owner/name"
    )
  return path


def shards(index: Path) -> list[str]:
  """Returns the names of the files beside an index that have its tensors.

  Raises:
    UserError: the index is damaged, or names a file elsewhere.
  """
  try:
    found = set(json.loads(index.read_bytes())["weight_map"].values())
    is_plain = all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in found)
  except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
    found, is_plain = set(), False
  if not found or not is_plain or len(found) > _MOST_SHARDS:
    raise UserError(
      f"{index} must be a JSON object whose weight_map names up to {_MOST_SHARDS} "
      ".safetensors files in the same folder"
    )
  return sorted(found)


def is_run(path: str | Path) -> bool:
  """Whether a source that exists is a directory of a run, not weights."""
  if path in names():
    return False
  path = Path(os.path.expanduser(path))
  has_weights = any((path / file).is_file() for file in HF_FILES)
  # The directory of a run may also hold its weights.
  return path.is_dir() and (not has_weights or (path / "checkpoints").exists())


def _advice(source: str) -> str:
  """Returns similar names, for a message about a source that does not exist."""
  is_bare = Path(source).name == source
  near = nearest(source, names()) or names()
  return f"; the package has {', '.join(near)}" if is_bare else ""


def _fetch(name: str) -> Path:
  try:
    import huggingface_hub
    import huggingface_hub.utils.logging as hub_logging
    from huggingface_hub.errors import (
      EntryNotFoundError,
      HfHubHTTPError,
      LocalEntryNotFoundError,
    )
  except ModuleNotFoundError as error:
    raise UserError(
      f"{name} needs huggingface_hub: pip install 'flax-resnet[hf]'"
    ) from error
  path, _, revision = name.removeprefix("hf://").partition("@")
  owner, _, rest = path.partition("/")
  repo, _, file = rest.partition("/")
  if not owner or not repo:
    raise UserError(f"{name!r} must be hf://owner/name, or hf://owner/name/file")
  hub_logging.set_verbosity(logging.ERROR)  # Hides retries.
  reasons: list[str] = []
  missing: list[
    str
  ] = []  # Files that are not in the cache, if the Hub cannot be reached.

  def fetch(file: str) -> Path:
    found = huggingface_hub.hf_hub_download(
      f"{owner}/{repo}", file, revision=revision or None, local_files_only=bool(missing)
    )
    return Path(found)

  for candidate in [file] if file else HF_FILES:
    try:
      found = fetch(candidate)
    except LocalEntryNotFoundError:
      missing.append(candidate)
      continue
    except (HfHubHTTPError, ValueError, OSError) as error:  # The name may be wrong.
      reasons.append(f"{candidate}: {str(error).splitlines()[0]}")
      continue
    for name_beside in config_files.NAMES:
      with contextlib.suppress(EntryNotFoundError):
        fetch(name_beside)
    if candidate.endswith(INDEX):
      for shard in shards(found):
        fetch(shard)
    return found
  if missing:
    reasons.append(
      f"the Hub cannot be reached, and its cache here has no {' or '.join(missing)}"
    )
  raise NotFoundError(f"{name} was not found: {'; '.join(reasons)}")


_say = functools.cache(warn)  # Warns once, although a source is found several times.
