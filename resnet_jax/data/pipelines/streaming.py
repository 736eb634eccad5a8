"""A data set of any size: decoded on the host while the device computes.

A call is one call of the compiled step, which can run several batches.
Letters: N examples, K batches of a call, B batch, S side of the images, C channels.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from concurrent import futures

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resnet_jax.config.plan import Plan
from resnet_jax.data import ImageSource, known_labels
from resnet_jax.data.batch import Batch
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.pipelines.host_batches import (
  Batches,
  HostBatch,
  Order,
  PairTransform,
  Transform,
  count_threads,
  iterate,
)
from resnet_jax.data.pipelines.sampling import BalancedOrder, RepeatedOrder, labels_of
from resnet_jax.runtime.arrays import Array, Int, Int32, PRNGKeyArray
from resnet_jax.runtime.mesh import local_rows, put_batches


@flax.struct.dataclass
class Chunk:
  """The batches of one call, on the devices.

  Attributes:
    batches: {"image": [K, B, S, S, C], "label": [K, B, ...], "mask": [K, B]}, see
      `Batch`.
    first: number of the first batch.
  """

  batches: Batch
  first: Int32[Array, ""]


def take_batch(chunk: Chunk, step: int | Int[Array, ""]) -> Batch:
  """Returns batch number `step`, which must be in the chunk."""

  def take(array: Array) -> Array:
    index = step - chunk.first
    taken: Array = jax.lax.dynamic_index_in_dim(array, index, keepdims=False)
    return taken

  batch: Batch = jax.tree.map(take, chunk.batches)
  return batch


class StreamingDataset:
  """One split, read from disk in every epoch.

  Attributes:
    num_examples: N.
    class_names: names of the labels, in order.
    image_shape: (S, S, C).
    labels: of all examples; None if they are not known before the images are read.
    take_batch: (chunk, step) -> Batch, for `train_chunk` and `eval_chunk`.
    skipped: index -> reason, for each image that could not be read.
    digest: digest of the source; "" if it has none.
  """

  def __init__(
    self,
    source: ImageSource,
    transform: Transform | PairTransform,
    batch_size: int,
    mesh: Mesh,
    *,
    max_skip_share: float | None = None,
    balanced: bool = False,
    repeats: int = 1,
    num_threads: int = 0,
    num_workers: int = 0,
  ):
    """Reads nothing yet.

    Args:
      source: the images.
      transform: maps the content of a file to [S, S, C]; for masks and boxes, also the
        label.
      batch_size: over all devices, a multiple of their number.
      mesh: the devices.
      max_skip_share: largest fraction of N that may be skipped; None allows none.
      balanced: whether training draws each class equally often, see `sampling.py`.
      repeats: number of times that training takes each drawn image in a row.
      num_threads: number of decoding threads over all workers; 0 is one per core.
      num_workers: number of processes that decode for training; 0 uses the threads of
        this process.
    """
    self.num_examples = len(source)
    self.class_names = source.class_names
    self.labels = known_labels(source)
    self.digest: str = getattr(source, "digest", "")
    self.image_shape = (transform.size, transform.size, transform.pixels.channels)
    self.take_batch = take_batch
    self.skipped: dict[int, str] = {}
    self._source, self._transform = source, transform
    self._batch_size, self._mesh = batch_size, mesh
    self._repeats = repeats
    self._balanced = labels_of(source) if balanced else None
    self._max_skip_share, self._num_workers = max_skip_share, num_workers
    self._num_threads = num_threads or count_threads()
    self._loaded = 0

  def _batches(
    self, order: Order, seed: int, replace: bool, num_workers: int
  ) -> Batches:
    return Batches(
      source=self._source,
      transform=self._transform,
      order=order,
      batch_size=self._batch_size,
      rows=local_rows(self._batch_size),
      seed=seed,
      replace=replace,
      num_threads=math.ceil(self._num_threads / max(1, num_workers)),
    )

  def train_chunks(
    self, key: PRNGKeyArray, step: int, plan: Plan
  ) -> Iterator[tuple[int, Chunk, int]]:
    """Yields the input of each call of the compiled step, from `step` to the end.

    The input is (step after the call, chunk, number of updates in the call). Each
    epoch has a new order of all examples, a function of (key, epoch). The last
    incomplete batch of an epoch is dropped. The augmentation of an example is a
    function of (key, step, place in the batch).

    Args:
      key: PRNG key of the shuffling and of the transform.
      step: completed updates.
      plan: limits the number of updates per call.

    Raises:
      ValueError: an image cannot be read and must not be skipped, or too many images
        cannot be read.
      OSError: a worker process died.
    """
    seed = int(jax.random.bits(key))
    order: Order
    if self._balanced is not None:
      order = BalancedOrder(self._balanced, seed)
    else:
      whole = grain.MapDataset.range(self.num_examples).shuffle(seed)
      order = whole[: plan.steps_per_epoch * self._batch_size].repeat()
    if self._repeats > 1:
      order = RepeatedOrder(order, self._repeats)
    replace, workers = self._max_skip_share is not None, self._num_workers
    loaded = iterate(self._batches(order, seed, replace, workers), step, workers)

    # A call runs on the device while the images of the next call are read and copied.
    # They are read in a thread, so that Ctrl-C cannot interrupt Grain while it
    # communicates with its worker processes.
    with contextlib.closing(loaded), futures.ThreadPoolExecutor(1) as reader:
      while step < plan.num_steps:
        end = plan.call_end(step)
        host = (reader.submit(next, loaded).result() for _ in range(step, end))
        yield end, self._put(host, step, plan.longest_call), end - step
        step = end

  def eval_chunks(self) -> Iterator[tuple[Chunk, int]]:
    """Yields (chunk, number of batches): every example once. Padding is masked.

    Raises:
      ValueError: as in `train_chunks`. Skipped images are masked.
      OSError: a worker process died.
    """
    length = math.ceil(self.num_examples / self._batch_size) * self._batch_size
    order = grain.MapDataset.range(length)
    batches = self._batches(order, seed=0, replace=False, num_workers=0)
    # In threads, because new processes would take longer to start than it takes to read
    # most data sets.
    for host in iterate(batches, 0, num_workers=0):
      yield self._put([host], 0, 1), 1

  def _checked(self, batch: HostBatch) -> dict[str, np.ndarray]:
    errors = batch["errors"]
    arrays = {"image": batch["image"], "label": batch["label"], "mask": batch["mask"]}
    self._loaded += len(batch["mask"])
    if not errors:
      return arrays
    if self._max_skip_share is None:
      raise ImageError(
        f"{errors[0][1]}; mend or remove it, or set config.data.on_error=skip"
      )
    self.skipped.update(errors)
    # Even a fraction of 1 must leave one readable image.
    allowed = min(self._max_skip_share * self.num_examples, self.num_examples - 1)
    # Each of P processes reads 1 / P of the images in an epoch, and other images in the
    # next epoch. After E epochs it has read about 1 - (1 - 1 / P)^E of all images, and
    # may have skipped only this part of the allowed number.
    others = 1 - 1 / jax.process_count()
    allowed *= 1 - others ** max(1, self._loaded / (self.num_examples * (1 - others)))
    if len(self.skipped) > allowed:
      raise ImageError(
        f"{len(self.skipped)} of {self.num_examples} images cannot be read, more than "
        f"config.data.max_skip_share={self._max_skip_share} allows, such as "
        f"{errors[0][1]}"
      )
    return arrays

  def _put(self, host: Iterable[HostBatch], first: int, length: int) -> Chunk:
    """Checks batches, pads them to `length` batches and copies them to the devices."""
    checked = [self._checked(batch) for batch in host]

    def stack(*arrays: np.ndarray) -> np.ndarray:
      if length == 1:
        return arrays[0][None]
      stacked = np.zeros((length, *arrays[0].shape), arrays[0].dtype)
      np.stack(arrays, out=stacked[: len(arrays)])
      return stacked

    stacked = jax.tree.map(stack, *checked)
    return Chunk(put_batches(stacked, self._mesh), jnp.int32(first))
