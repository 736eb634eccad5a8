"""Where weights are: in the package, a file, a folder, or on the Hugging Face hub."""

import os
from pathlib import Path

from resnet_jax.config.allowed import nearest
from resnet_jax.runtime.buckets import check_bucket, is_remote, storage_path
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.runtime.terminal import warn_once
from resnet_jax.weights import hub
from resnet_jax.weights.shards import INDEX

# Files that other libraries write.
TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar", ".ckpt")
KERAS_SUFFIXES = (".h5", ".keras")
FOREIGN_SUFFIXES = (*TORCH_SUFFIXES, *KERAS_SUFFIXES)
HF_FILES = ("model.safetensors", f"model{INDEX}", "pytorch_model.bin")
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
  if is_remote(name):
    check_bucket(name, f"{setting}{name}")
  is_known = hub.is_hub(name) or source in names()
  if not is_known and not storage_path(source).exists():
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
  if hub.is_hub(name):
    return hub.fetch(name, HF_FILES)
  if path in names():
    if Path(path).exists():
      warn_once(
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
  suffixes = (".safetensors", *FOREIGN_SUFFIXES)
  if not path.name.endswith((INDEX, *suffixes)):
    raise UserError(
      f"{name!r} must end in {', '.join(suffixes)}, or be hf://owner/name"
    )
  return path


def is_run(path: str | Path) -> bool:
  """Whether a source that exists is a directory of a run, not weights.

  A source in a bucket can only be a run.
  """
  if path in names():
    return False
  if is_remote(path):
    return True
  path = Path(os.path.expanduser(path))
  has_weights = any((path / file).is_file() for file in HF_FILES)
  # The directory of a run may also hold its weights.
  return path.is_dir() and (not has_weights or (path / "checkpoints").exists())


def _advice(source: str) -> str:
  """Returns similar names, for a message about a source that does not exist."""
  is_bare = Path(source).name == source
  near = nearest(source, names()) or names()
  return f"; the package has {', '.join(near)}" if is_bare else ""
