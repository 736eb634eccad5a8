"""Runs a network on many batches, while the next batch is read."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from resnet_jax import kernels
from resnet_jax.data.pipelines.host_batches import HostBatch
from resnet_jax.inference.classifier import Classifier
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array
from resnet_jax.runtime.mesh import batch_sharding, replicated

# Selects what is wanted from the outputs of `Classifier`; returns a pytree.
Outputs = Callable[[dict[str, Array]], Any]


def run_batches(
  classifier: Classifier,
  batches: Iterator[HostBatch],
  outputs: Outputs,
  mesh: Mesh,
) -> Iterator[tuple[HostBatch, Any]]:
  """Yields batches with the network's outputs for them.

  The next batch is read while the devices compute; at most three are in memory.

  Args:
    classifier: the network.
    batches: batches from `read_batches`; B is a multiple of the number of devices.
    outputs: traced function that selects from the outputs of `Classifier`.
    mesh: the devices.
  """
  folded = classifier.folded
  run = compilation.jit(
    kernels.traced_with(
      kernels.resolve("auto"),
      lambda variables, images: outputs(folded.apply(variables, images)),
    ),
    dtype=folded.dtype,
    out_shardings=batch_sharding(mesh),
  )
  before = variables = None
  for batch in batches:
    images = jax.device_put(batch["image"], batch_sharding(mesh))
    if variables is None:
      variables = folded.packed((*images.shape[:-1], folded.channels))
      variables = jax.device_put(variables, replicated(mesh))
    now = batch, run(variables, images)
    if before is not None:
      yield before[0], jax.device_get(before[1])
    before = now
  if before is not None:
    yield before[0], jax.device_get(before[1])
