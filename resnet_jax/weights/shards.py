"""Weights that are split into several `.safetensors` files, with an index."""

import json
import re
from pathlib import Path

from resnet_jax.runtime.errors import UserError

INDEX = ".safetensors.index.json"  # Ending of the file that names each tensor's file.
_MOST_SHARDS = 1000


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
