"""Reads the tensors of a file of weights, by their names in torchvision or timm."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from resnet_jax.models.variables import Variables, abstract_variables
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.weights import keras_file, state_dict, torch_checkpoint
from resnet_jax.weights.foreign_names import BODY, FIRST_KERNELS, to_timm
from resnet_jax.weights.location import KERAS_SUFFIXES
from resnet_jax.weights.shards import INDEX, shards
from resnet_jax.weights.torch_names import Network, torch_names

# None stands for a tensor that cannot be read.
Tensors = dict[str, np.ndarray | None]
Translate = Callable[[Collection[str], bool | None], tuple[dict[str, str], str]]
# Tensors that only training needs: those of batch norm and of averaged weights.
COUNTERS = ("num_batches_tracked", "n_averaged")
_FEW = 5  # The largest number of names of one kind in a message.


def read_names(path: Path) -> list[str]:
  """Returns the names of the tensors in a file that `location.find` returned."""
  return list(_read(path, only_shapes=True)[0])


def read_tensors(
  path: Path,
  ema: bool | None = None,
  *,
  only_shapes: bool = False,
  translate: Translate = to_timm,
) -> tuple[Tensors, list[str]]:
  """Reads the tensors of a network.

  Args:
    path: a file that `location.find` returned.
    ema: as in `weights.load`.
    only_shapes: do not read the numbers of a `.safetensors` file, and do not warn. The
      arrays then have the right shapes, and any numbers.
    translate: a function of `foreign_names.py` that translates the names.

  Returns:
    The tensors by name, and a list of problems.

  Raises:
    UserError: the file is damaged, `ema` does not choose one of its networks, or it has
      no network for semantic segmentation.
  """
  arrays, problems = _read(path, only_shapes)
  try:
    translated, prefix = translate(arrays, ema)
  except UserError as error:
    raise UserError(f"{path} cannot be loaded: {error}") from error
  beside = [name for name in arrays if name not in translated]
  if beside and not only_shapes:
    left = ", ".join(few(beside))
    warn(f"{path}: only the tensors under {prefix!r} are used, not {left}")
  tensors: Tensors = {}
  for name, found in translated.items():
    if found in tensors:
      problems.append(f"{found} appears twice, once as {name}")
    tensors[found] = arrays.pop(name)
  return tensors, problems


def _read(path: Path, only_shapes: bool = False) -> tuple[Tensors, list[str]]:
  if path.name.endswith(INDEX):
    arrays: Tensors = {}
    problems = []
    for name in shards(path):
      found, wrong = _read(path.with_name(name), only_shapes)
      problems += [f"{key} is in two files" for key in found.keys() & arrays.keys()]
      problems += wrong
      arrays |= found
    return arrays, problems
  if path.suffix in KERAS_SUFFIXES:
    return dict(keras_file.read(path, only_shapes)), []
  if path.suffix != ".safetensors":
    return torch_checkpoint.read(path)
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      arrays, problems = {}, []
      for name in file.keys():  # noqa: SIM118
        if only_shapes:
          arrays[name] = _without_numbers(file.get_slice(name).get_shape())
          continue
        try:
          arrays[name] = file.get_tensor(name)
        except (TypeError, AttributeError):  # NumPy has no such dtype.
          arrays[name] = None
          problems.append(f"{name} has dtype {file.get_slice(name).get_dtype()}")
      return arrays, problems
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error


def _without_numbers(shape: list[int]) -> np.ndarray | None:
  """Returns an array that takes no memory; None if NumPy has no such shape."""
  try:
    return np.broadcast_to(np.float32(0), shape)
  except (ValueError, OverflowError):
    return None


def few(names: list[str]) -> list[str]:
  """Returns the first names and the number of other names, for a message."""
  return state_dict.few([f"{name:.200}" for name in names], _FEW)


def wanted_by(
  model: Network, tensors: Tensors
) -> tuple[Variables, dict[str, tuple[str, ...]]]:
  """Returns a network's abstract variables, and the path of each by its name.

  The network takes images with the channels of the first convolution in `tensors`.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = abstract_variables(model, (32, 32, _channels(tensors)), device)
  return wanted, torch_names(model, wanted)


def _channels(tensors: Tensors) -> int:
  """Returns the channels of the images that the first convolution takes."""
  for name in FIRST_KERNELS:
    places = (prefix + name for prefix in ("", "backbone.", BODY))
    kernel = next((tensors[place] for place in places if place in tensors), None)
    # Images have few channels. A huge number would make other shapes huge too.
    if kernel is not None and kernel.ndim == 4 and 0 < kernel.shape[1] < 1000:
      return int(kernel.shape[1])
  return 3


def at(tree: Any, keys: tuple[str, ...]) -> Any:
  """Returns the leaf at a path."""
  for key in keys:
    tree = tree[key]
  return tree


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns PyTorch's shape of a parameter; a matrix may have two more axes of 1."""
  return (shape[-1], *shape[-2:-1], *shape[:-2])


def has_shape(array: np.ndarray, shape: tuple[int, ...]) -> bool:
  """Whether PyTorch's array can become ours of this shape."""
  needed = torch_shape(shape)
  # A matrix may be stored as a 1x1 convolution, as in timm's squeeze-excite and heads.
  return array.shape == needed or (array.ndim == 4 and array.shape == (*needed, 1, 1))
