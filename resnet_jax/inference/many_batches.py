"""Runs a network on batches of images.

Letters: B batch, H height, W width, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax.data.pipelines.host_batches import HostBatch
from resnet_jax.inference.classifier import Classifier
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array
from resnet_jax.runtime.mesh import batch_sharding, replicated

# Computes what is wanted from some outputs of `Classifier`; returns a pytree.
Finish = Callable[[dict[str, Array]], Any]
# Begins to compute for images, and returns a function that waits for the result.
_Begin = Callable[[np.ndarray], Callable[[], Any]]


def run_batches(
  classifier: Classifier,
  batches: Iterator[HostBatch],
  names: Sequence[str],
  finish: Finish,
  mesh: Mesh,
) -> Iterator[tuple[HostBatch, Any]]:
  """Yields batches with the network's outputs for them.

  The next batch is read while the network computes; at most three are in memory.

  Args:
    classifier: the network.
    batches: batches from `read_batches`; B is a multiple of the number of devices.
    names: the outputs of `Classifier` that `finish` takes.
    finish: traced function of these outputs.
    mesh: the devices. Another engine than JAX computes on the CPU instead.
  """
  with ThreadPoolExecutor(1) as thread:
    if classifier.engine == "jax":
      begin = _on_devices(classifier, names, finish, mesh)
    else:
      begin = _in_engine(classifier, names, finish, thread)
    before = None
    for batch in batches:
      now = batch, begin(batch["image"])
      if before is not None:
        yield before[0], before[1]()
      before = now
    if before is not None:
      yield before[0], before[1]()


def _on_devices(
  classifier: Classifier, names: Sequence[str], finish: Finish, mesh: Mesh
) -> _Begin:
  folded = classifier.folded

  def wanted(variables: Variables, images: Array) -> Any:
    found = folded.apply(variables, images)
    return finish({name: found[name] for name in names})

  run = compilation.jit(
    folded.with_kernels(wanted),
    dtype=folded.dtype,
    out_shardings=batch_sharding(mesh),
  )
  placed: list[Variables] = []

  def begin(images: np.ndarray) -> Callable[[], Any]:
    if not placed:
      variables = folded.packed((*images.shape[:-1], folded.channels))
      placed.append(jax.device_put(variables, replicated(mesh)))
    found = run(placed[0], jax.device_put(images, batch_sharding(mesh)))
    return lambda: jax.device_get(found)

  return begin


def _in_engine(
  classifier: Classifier,
  names: Sequence[str],
  finish: Finish,
  thread: ThreadPoolExecutor,
) -> _Begin:
  run, compiled = classifier.in_engine(tuple(names)), jax.jit(finish)
  return lambda images: (
    thread.submit(lambda: jax.device_get(compiled(run(images)))).result
  )
