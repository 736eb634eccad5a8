"""Shapes and dtypes of the arrays in a checkpoint, without reading the arrays."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import absl.logging
import jax
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


def check_shapes(
  directory: epath.Path, part: str, wanted: Any, stored: epath.Path
) -> None:
  """Raises `UserError` if the arrays of a part differ from the wanted ones.

  Args:
    directory: the checkpoint, or a copy of it.
    part: such as "model".
    wanted: arrays, or their shapes.
    stored: the checkpoint, for messages.
  """
  found, own = _shapes(read_shapes(directory, part)), _shapes(wanted)
  for path in sorted(found.keys() | own.keys()):
    has, takes = found.get(path, "missing"), own.get(path, "missing")
    if has != takes:
      raise UserError(
        f"checkpoint {stored} is of another network, optimiser or kind of images: "
        f"{path} is {has} in it and {takes} in this run; resume with the settings and "
        "the code that started the run, or train in a new --workdir"
      )


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
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): str(list(leaf.shape))
    for path, leaf in leaves
  }
