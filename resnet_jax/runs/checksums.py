"""Digests: of a checkpoint's files, to notice later damage, and of arrays, to compare.

A flipped byte of a number is a number: what reads a checkpoint cannot tell.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

_NAME = "digests.json"
# Orbax writes the time of the commit into it, after all else.
_CHANGING = "_CHECKPOINT_METADATA"


def _digest_files(directory: epath.Path, below: str = "") -> dict[str, str]:
  """Returns a digest of each file below a directory, by its path there."""
  found: dict[str, str] = {}
  for path in directory.iterdir():
    name = below + path.name
    if path.is_dir():
      found |= _digest_files(path, f"{name}/")
    elif path.name not in (_NAME, _CHANGING):
      digest = hashlib.blake2b(path.read_bytes(), digest_size=16)
      found[name] = digest.hexdigest()
  return found


def write_digests(directory: epath.Path) -> None:
  """Writes the digests of a checkpoint's files beside them."""
  (directory / _NAME).write_text(json.dumps(_digest_files(directory), indent=0))


def digest_arrays(tree: Any) -> str:
  """Returns a digest of arrays: equal for equal paths, shapes, dtypes and bits."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def find_damage(directory: epath.Path) -> str:
  """Returns what is wrong with a checkpoint's files; "" if nothing is known to be."""
  path = directory / _NAME
  if not path.exists():
    return ""
  try:
    expected = json.loads(path.read_text())
  except ValueError:
    return f"{_NAME} is damaged"
  found = _digest_files(directory)
  for name, digest in expected.items():
    if found.get(name) != digest:
      return f"{name} is {'damaged' if name in found else 'gone'}"
  return ""
