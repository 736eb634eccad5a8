"""The device mesh and the shardings: batches are split, everything else is copied.

Only this file creates meshes and shardings. The mesh has one axis, "data".
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

# JAX functions without declared types.
_spec: Callable[..., PartitionSpec] = PartitionSpec
_constrain: Callable[[Any, Any], Any] = jax.lax.with_sharding_constraint


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh of the given devices (all of them by default) along "data"."""
  devices = in_process_order(jax.devices() if devices is None else devices)
  # Auto, not the newer default Explicit: the compiler propagates the shardings.
  return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def in_process_order(devices: Sequence[jax.Device]) -> list[jax.Device]:
  """Returns the devices sorted by process.

  A batch is split over the devices in this order, so each process's devices get the
  rows that it loads (`local_rows`). `jax.make_mesh` would sort by the wiring of a TPU
  slice, so the devices of one process might not be neighbours.
  """
  return sorted(devices, key=lambda device: (device.process_index, device.id))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding in which every device holds the whole array."""
  return NamedSharding(mesh, _spec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits the first axis over the devices."""
  return NamedSharding(mesh, _spec("data"))


def chunk_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of K stacked batches: it splits the second axis."""
  return NamedSharding(mesh, _spec(None, "data"))


def split_over_devices(tree: Any, mesh: Mesh) -> Any:
  """Returns a sharding for each array, which splits one axis over the devices.

  This is the last axis whose length is a multiple of the number of devices. If there is
  none, every device holds the whole array.

  Args:
    tree: a tree of arrays, or of their shapes and dtypes.
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
  """Splits an optimiser, so that each device stores and computes a part of it.

  This is "ZeRO-1" (Rajbhandari et al. 2020, section 5.1). The state must have the
  shardings of `split_over_devices`.

  Args:
    tx: the optimiser.
    mesh: the devices.
  """

  def split(tree: Any) -> Any:
    # Replicate first. Otherwise the compiler extends the split to the operations before
    # and after the optimiser, and has to gather the inputs of each convolution again.
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
  """Returns into how many groups batch norm splits a batch.

  Each group has its own statistics.

  Args:
    scope: "global", "device", or the number of devices that pool their statistics.
    batch_size: number of images that are normalised at a time, over all devices.
    mesh: the devices.

  Raises:
    ValueError: the devices do not split evenly into groups of this size, or the batch
      does not split evenly over the groups.
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
  """Rounds a batch size up to one that splits evenly over the devices."""
  return math.ceil(batch_size / mesh.size) * mesh.size


def put_batches(batches: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Copies this process's rows of K batches to its devices.

  Args:
    batches: arrays [K, rows of this process, ...].
    mesh: the devices.

  Returns:
    Arrays [K, B, ...]; B is split over the devices.
  """
  put = partial(jax.make_array_from_process_local_data, chunk_sharding(mesh))
  placed: dict[str, jax.Array] = jax.tree.map(put, batches)
  return placed


def local_rows(batch_size: int) -> tuple[int, int]:
  """Returns [first, end) of the rows of a batch that this process loads."""
  rows = batch_size // jax.process_count()
  return jax.process_index() * rows, (jax.process_index() + 1) * rows


def of_first_process(text: str) -> str:
  """Sends the text of process 0 to all processes, and returns it in each of them."""
  escape = "surrogateescape"  # A name may have bytes that are not UTF-8.
  data = np.frombuffer(text.encode(errors=escape), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.array(len(data))))
  first = bytes(multihost_utils.broadcast_one_to_all(np.resize(data, size)))
  return first.decode(errors=escape)
