"""What this package keeps in a `.safetensors` file beside the numbers."""

import json
from pathlib import Path
from typing import Any

import safetensors

from resnet_jax.runtime.errors import UserError


def kept(path: Path, key: str) -> Any:
  """Returns what `weights.save` put into a file under a key; None if nothing."""
  text = _metadata(path).get(key)
  if text is None:
    return None
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    found = None
  if found is None:
    raise UserError(f"the {key} of {path} is damaged: {text[:60]!r} is no JSON")
  return found


def _metadata(path: Path) -> dict[str, str]:
  if path.suffix != ".safetensors":
    return {}
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return file.metadata() or {}
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error
