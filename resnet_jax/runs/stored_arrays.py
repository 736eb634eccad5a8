"""Shapes and dtypes of the arrays in a checkpoint, without reading the arrays."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from resnet_jax.runtime.errors import UserError


@runtime_checkable
class StoredArray(Protocol):
  """Orbax's description of an array in a checkpoint."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...


def read_shapes(directory: epath.Path, part: str) -> Any:
  """Returns a part of a checkpoint with a `StoredArray` for each array.

  Raises:
    OSError: the checkpoint is damaged.
  """
  with clean_errors(directory), ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.metadata(directory / part).item_metadata.tree


def shapes_to_restore(
  directory: epath.Path, saved: Mapping[str, Any], stored: epath.Path
) -> dict[str, Any]:
  """Returns what to ask Orbax for, to restore the parts of a state.

  Several processes save the data of PRNG keys to a bucket. Where a checkpoint has data,
  this asks for it; `to_keys` turns it back into keys.

  Args:
    directory: the checkpoint, or a copy of it.
    saved: part -> arrays of the state.
    stored: the checkpoint, for messages.

  Raises:
    UserError: the shapes in the checkpoint differ.
  """
  wanted = {}
  for part, arrays in saved.items():
    found = _shapes(read_shapes(directory, part))
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
    wanted[part] = jax.tree_util.tree_map_with_path(partial(_as_found, found), shapes)
    _check_shapes(found, _shapes(wanted[part]), stored)
  return wanted


def _as_found(
  found: Mapping[str, str], path: Any, leaf: jax.ShapeDtypeStruct
) -> jax.ShapeDtypeStruct:
  """Replaces a key by its data if a checkpoint has another shape."""
  if not _is_key(leaf) or found.get(_name(path)) in (None, str(list(leaf.shape))):
    return leaf
  data = jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _check_shapes(
  found: Mapping[str, str], own: Mapping[str, str], stored: epath.Path
) -> None:
  for path in sorted(found.keys() | own.keys()):
    has, takes = found.get(path, "missing"), own.get(path, "missing")
    if has != takes:
      raise UserError(
        f"checkpoint {stored} is of another network, optimiser or kind of images: "
        f"{path} is {has} in it and {takes} in this run; resume with the settings and "
        "the code that started the run, or train in a new --workdir"
      )


def to_keys(wanted: Any, parts: Any) -> Any:
  """Returns `parts` with a key wherever `wanted` has one."""

  def wrap(key: jax.Array, x: jax.Array) -> jax.Array:
    if _is_key(x) or not _is_key(key):
      return x
    wrapped: jax.Array = jax.random.wrap_key_data(x, impl=jax.random.key_impl(key))
    return wrapped

  return jax.tree.map(wrap, wanted, parts)


@contextlib.contextmanager
def clean_errors(directory: epath.Path) -> Iterator[None]:
  """Turns errors of Orbax while it reads a checkpoint into `OSError`.

  It also hides Orbax's warning about a file that the parts of our checkpoints lack.
  """
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(min(verbosity, absl.logging.ERROR))
  try:
    yield
  except Exception as error:  # Orbax and tensorstore raise all kinds.
    raise OSError(
      f"checkpoint {directory} cannot be restored: it is damaged; delete it to resume "
      f"from the one before ({str(error)[:120]})"
    ) from error
  finally:
    absl.logging.set_verbosity(verbosity)


def _shapes(tree: Any) -> dict[str, str]:
  """Returns {path: shape} for the arrays of a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): str(list(leaf.shape)) for path, leaf in leaves}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_key(array: jax.Array | jax.ShapeDtypeStruct) -> bool:
  return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))
