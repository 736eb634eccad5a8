"""The device mesh and how arrays lie on it: batches split, everything else copied.

The only file that makes meshes and shardings. One axis, "data".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.runtime.errors import UserError, setting_name

# What JAX declares no types of.
_spec: Callable[..., PartitionSpec] = PartitionSpec
_constrain: Callable[[Any, Any], Any] = jax.lax.with_sharding_constraint


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh of the given devices (all of them by default) along "data"."""
  devices = in_process_order(jax.devices() if devices is None else devices)
  # Auto, not the newer default Explicit: the compiler propagates the shardings.
  return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def in_process_order(devices: Sequence[jax.Device]) -> list[jax.Device]:
  """Returns the devices of process 0 first, as `local_rows` has the rows of a batch.

  `jax.make_mesh` would go along the wires of a TPU slice, in and out of its hosts.
  """
  return sorted(devices, key=lambda device: (device.process_index, device.id))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, _spec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis is split over the devices."""
  return NamedSharding(mesh, _spec("data"))


def chunk_sharding(mesh: Mesh) -> NamedSharding:
  """The second axis is split over the devices: batches one after the other."""
  return NamedSharding(mesh, _spec(None, "data"))


def split_over_devices(tree: Any, mesh: Mesh) -> Any:
  """Returns a sharding for each array: its last axis that splits evenly is split.

  Where none does, every device holds the whole.

  Args:
    tree: of arrays or of their shapes and dtypes.
    mesh: the devices.
  """

  def sharding(array: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
    for axis in reversed(range(array.ndim)):
      if array.shape[axis] % mesh.size == 0:
        return NamedSharding(mesh, _spec(*[None] * axis, "data"))
    return replicated(mesh)

  return jax.tree.map(sharding, tree)


def split_updates(
  tx: optax.GradientTransformation, mesh: Mesh
) -> optax.GradientTransformation:
  """Returns an optimiser of which each device keeps and computes a part.

  Rajbhandari et al. 2020, section 5.1 ("ZeRO-1"). The state is to be placed by
  `split_over_devices`.

  Args:
    tx: the optimiser.
    mesh: the devices.
  """

  def split(tree: Any) -> Any:
    # Whole first: else the compiler splits all that leads to it and comes from it, and
    # gathers the inputs of each convolution.
    tree = _constrain(tree, replicated(mesh))
    return _constrain(tree, split_over_devices(tree, mesh))

  def update(
    gradients: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
  ) -> tuple[optax.Updates, optax.OptState]:
    parted: tuple[optax.Updates, optax.OptState]
    parted = tx.update(split(gradients), state, split(params))
    return parted

  return optax.GradientTransformation(tx.init, update)


def count_norm_groups(scope: int | str, batch_size: int, mesh: Mesh) -> int:
  """Returns the number of parts of a batch that batch norm takes by themselves.

  Args:
    scope: "global", "device", or how many devices share their statistics.
    batch_size: images that are normalised at a time, over all devices.
    mesh: the devices.

  Raises:
    ValueError: the devices do not split into such groups, or the batch into theirs.
  """
  together = {"global": mesh.size, "device": 1}.get(str(scope)) or int(scope)
  if mesh.size % together:
    raise UserError(
      f"config.bn_scope={scope} must divide the number of devices, {mesh.size}"
    )
  groups = mesh.size // together
  if batch_size % groups:
    raise UserError(
      f"config.batch_size / config.optim.accumulate={batch_size} must be a multiple of "
      f"{groups}, the number of groups of config.bn_scope={scope}"
    )
  return groups


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises `ValueError` if a batch does not split evenly over the devices."""
  if batch_size % mesh.size:
    nearest = max(1, round(batch_size / mesh.size)) * mesh.size
    raise UserError(
      f"{setting_name('batch_size')}={batch_size} must be a multiple of the "
      f"{mesh.size} devices, "
      f"such as {nearest}"
    )


def fill_devices(batch_size: int, mesh: Mesh) -> int:
  """Returns the next batch size that splits evenly over the devices."""
  return math.ceil(batch_size / mesh.size) * mesh.size


def put_batches(batches: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Copies this process's rows of K batches to its devices.

  Args:
    batches: tree of [K, rows of this process, ...].
    mesh: the devices.

  Returns:
    Tree of [K, B, ...], B split over the devices.
  """
  put = partial(jax.make_array_from_process_local_data, chunk_sharding(mesh))
  placed: dict[str, jax.Array] = jax.tree.map(put, batches)
  return placed


def local_rows(batch_size: int) -> tuple[int, int]:
  """Returns the first row, and the last + 1, of a batch that this process loads."""
  rows = batch_size // jax.process_count()
  return jax.process_index() * rows, (jax.process_index() + 1) * rows


def of_first_process(text: str) -> str:
  """Returns the text of process 0, in all processes."""
  escape = "surrogateescape"  # A name may have a byte that is no UTF-8.
  data = np.frombuffer(text.encode(errors=escape), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.array(len(data))))
  first = bytes(multihost_utils.broadcast_one_to_all(np.resize(data, size)))
  return first.decode(errors=escape)
