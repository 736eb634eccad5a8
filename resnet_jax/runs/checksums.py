"""Digests of a checkpoint's files, to detect damage, and of arrays, to compare them.

Reading a checkpoint does not detect a flipped byte: it only yields another number.
"""

import hashlib
import json
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from resnet_jax.runs.bucket_checkpoints import DIGESTS
from resnet_jax.runs.run_dir import write_file

# With this file, Orbax finds the arrays of a part, such as "model".
_INDEX = "manifest.ocdbt"
# Orbax writes the commit time into this file, after all others.
_CHANGING = "_CHECKPOINT_METADATA"


def _digest_file(path: epath.Path) -> str:
  return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _digest_files(directory: epath.Path, below: str = "") -> dict[str, str]:
  """Returns {path relative to the directory: digest} for each file below it."""
  found: dict[str, str] = {}
  for path in directory.iterdir():
    name = below + path.name
    if path.is_dir():
      found |= _digest_files(path, f"{name}/")
    elif path.name not in (DIGESTS, _CHANGING):
      found[name] = _digest_file(path)
  return found


def write_digests(directory: epath.Path, parts: Collection[str]) -> None:
  """Writes the digests of a checkpoint's files into its directory.

  Args:
    directory: directory of the checkpoint.
    parts: the names of its trees of arrays.

  Raises:
    OSError: a part is missing, or a file cannot be read or written.
  """
  digests = _digest_files(directory)
  for name in (f"{part}/{_INDEX}" for part in parts):
    if name not in digests:
      raise FileNotFoundError(f"{name} was not written")
  (directory / DIGESTS).write_text(json.dumps(digests, indent=0))


def add_digests(directory: epath.Path, parts: Collection[str]) -> None:
  """Adds digests of parts that were added or replaced after the checkpoint's save."""
  old = _read_object(directory / DIGESTS) or {}
  digests = {name: old[name] for name in old if name.split("/")[0] not in parts}
  for part in parts:
    if (directory / part).exists():
      digests |= _digest_files(directory / part, f"{part}/")
  write_file(directory / DIGESTS, json.dumps(digests, indent=0))


def digest_arrays(tree: Any) -> str:
  """Returns a digest of the paths, shapes, dtypes and bits of arrays."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def has_digests(directory: epath.Path) -> bool:
  """Whether the directory of a checkpoint holds digests."""
  return bool((directory / DIGESTS).exists())


def is_complete(directory: epath.Path, name: str) -> bool:
  """Whether a file of a checkpoint exists, and has a digest if others have one."""
  if not (directory / name).exists():
    return False
  return not has_digests(directory) or name in (_read_object(directory / DIGESTS) or {})


def find_damage(
  directory: epath.Path, expects_digests: bool, parts: Collection[str] = ()
) -> str:
  """Returns what is wrong with a checkpoint's files; "" if no damage is found.

  Args:
    directory: directory of the checkpoint.
    expects_digests: whether the checkpoint was saved with digests.
    parts: the parts to check, such as "metrics"; empty is all.
  """
  # Orbax reads these two files of every checkpoint; they may have no digests.
  for name in (_CHANGING, "metrics/metrics"):
    if (directory / name).exists() and _read_object(directory / name) is None:
      return f"{name} is damaged"
  if not has_digests(directory):
    if expects_digests:
      return f"{DIGESTS} is gone"
    return "" if (directory / "model" / _INDEX).exists() else f"model/{_INDEX} is gone"
  digests = _read_object(directory / DIGESTS)
  if digests is None or f"model/{_INDEX}" not in digests:
    return f"{DIGESTS} is damaged"
  for name, digest in digests.items():
    if parts and name.split("/")[0] not in parts:
      continue
    if not (directory / name).is_file():
      return f"{name} is gone"
    if _digest_file(directory / name) != digest:
      return f"{name} is damaged"
  return ""


def _read_object(path: epath.Path) -> dict[str, Any] | None:
  """Returns the JSON object in a file; None if the file holds none."""
  try:
    values = json.loads(path.read_text())
  except (ValueError, RecursionError):
    return None
  return values if isinstance(values, dict) else None
