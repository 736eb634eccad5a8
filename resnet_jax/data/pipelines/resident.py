"""A data set in device memory: the device shuffles it, and the step takes batches.

Letters: N examples, B batch, H height, W width, C channels.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax.config.plan import Plan
from resnet_jax.data import ImageArrays
from resnet_jax.data.batch import Batch, TakeBatch
from resnet_jax.data.batches.preprocess import resize_and_crop
from resnet_jax.data.pipelines.sampling import balanced_shares
from resnet_jax.runtime.arrays import Array, Int, Int32, PRNGKeyArray, Shaped, UInt
from resnet_jax.runtime.mesh import batch_sharding, replicated


@flax.struct.dataclass
class Feed:
  """Images on the device and their order.

  Attributes:
    image: all images.
    label: [N, ...], labels of the images, see `LabelSpec`.
    order: indices of the examples, for at least one batch. Indices >= N are padding.
  """

  image: UInt[Array, "n h w c"]
  label: Shaped[Array, "n ..."]
  order: Int32[Array, " _"]


Resize = Callable[[Array], Array]
# JAX declares no types for this function.
_constrain: Callable[[Any, jax.sharding.Sharding], Any]
_constrain = jax.lax.with_sharding_constraint


def take_batch(
  feed: Feed,
  step: int | Int[Array, ""],
  *,
  batch_size: int,
  sharding: jax.sharding.Sharding,
  resize: Resize = lambda images: images,
) -> Batch:
  """Returns batch number `step` of the order, which repeats after its end.

  Args:
    feed: see `Feed`.
    step: number of the batch.
    batch_size: B.
    sharding: sharding of each array's first axis.
    resize: resizes the batch's images to the input size of the model.

  Returns:
    {"image": [B, H, W, C], "label": [B, ...], "mask": [B] bool}.
  """
  position = step % (len(feed.order) // batch_size) * batch_size
  index = jax.lax.dynamic_slice_in_dim(feed.order, position, batch_size)
  index = _constrain(index, sharding)
  batch = {
    "image": resize(feed.image.at[index].get(mode="clip")),
    "label": feed.label.at[index].get(mode="clip"),
    "mask": index < len(feed.label),
  }
  placed: Batch = _constrain(batch, sharding)
  return placed


def bind_take_batch(
  images: UInt[np.ndarray, "n h w c"],
  batch_size: int,
  mesh: Mesh,
  resize: int = 0,
  crop: int = 0,
  interpolation: str = "bilinear",
) -> tuple[TakeBatch[Feed], tuple[int, int, int]]:
  """Returns `take_batch` as a function of (feed, step), and (H, W, C) of its images.

  Args:
    images: the images of the `Feed`.
    batch_size: B.
    mesh: the devices.
    resize: see `resize_and_crop`, which is part of the step.
    crop: see `resize_and_crop`.
    interpolation: see `resize_and_crop`.
  """
  resized = partial(
    resize_and_crop, resize=resize, crop=crop, interpolation=interpolation
  )
  bound = partial(
    take_batch, batch_size=batch_size, sharding=batch_sharding(mesh), resize=resized
  )
  return bound, jax.eval_shape(resized, images[:1]).shape[1:]


class ResidentDataset:
  """One split, kept as integers on every device.

  Attributes:
    num_examples: N.
    class_names: names of the labels, in order.
    image_shape: (H, W, C) of a batch's images.
    labels: of all examples.
    skipped: empty, because every image was read.
    digest: see `ImageArrays`.
    take_batch: (feed, step) -> Batch, for `train_chunk` and `eval_chunk`.
  """

  def __init__(
    self,
    source: ImageArrays,
    batch_size: int,
    mesh: Mesh,
    balanced: bool = False,
    repeats: int = 1,
    **resizing: Any,
  ):
    """Copies the images to the devices.

    Args:
      source: see `ImageArrays`.
      batch_size: over all devices, a multiple of their number.
      mesh: the devices.
      balanced: whether training draws each class equally often, see `sampling.py`.
      repeats: number of times that training takes each drawn image in a row.
      **resizing: `resize`, `crop` and `interpolation` of `bind_take_batch`.
    """
    self.num_examples = len(source.images)
    self.labels = source.labels
    self.class_names = source.class_names
    self.digest = source.digest
    self.skipped: dict[int, str] = {}
    self.take_batch, self.image_shape = bind_take_batch(
      source.images, batch_size, mesh, **resizing
    )
    self._num_batches = math.ceil(self.num_examples / batch_size)
    # Order of the evaluation; the indices past the last example are padding.
    order = np.arange(self._num_batches * batch_size, dtype=np.int32)
    arrays = (source.images, source.labels, order)
    self._feed = Feed(*jax.device_put(arrays, replicated(mesh)))
    self._repeats = repeats
    shares = balanced_shares(source.labels) if balanced else None
    self._shares = None if shares is None else jax.device_put(np.float32(shares))
    self._shuffle = jax.jit(self._epoch_order, out_shardings=replicated(mesh))

  def _epoch_order(
    self, key: PRNGKeyArray, epoch: Int[Array, ""]
  ) -> Int32[Array, " {self.num_examples}"]:
    key, count = jax.random.fold_in(key, epoch), self.num_examples
    if self._shares is None:
      order = jax.random.permutation(key, count)
    else:
      order = jax.random.choice(key, count, (count,), p=self._shares)
    if self._repeats > 1:
      order = order.repeat(self._repeats, total_repeat_length=count)
    return order

  def train_chunks(
    self,
    key: PRNGKeyArray,
    step: int,
    plan: Plan,
  ) -> Iterator[tuple[int, Feed, int]]:
    """Yields (step after the call, feed, number of updates) from `step` to the end.

    Each epoch has a new order of all examples, a function of (key, epoch), or a new
    balanced draw. The last incomplete batch of an epoch is dropped.

    Args:
      key: PRNG key of the shuffling.
      step: completed updates.
      plan: limits the number of updates per call.
    """
    feed, epoch = self._feed, -1
    while step < plan.num_steps:
      if epoch != step // plan.steps_per_epoch:
        epoch = step // plan.steps_per_epoch
        feed = dataclasses.replace(feed, order=self._shuffle(key, epoch))
      end = plan.call_end(step)
      yield end, feed, end - step
      step = end

  @functools.cached_property
  def _eval_orders(self) -> list[Array]:
    """The order of the evaluation, as one array on the devices per batch."""
    parts = np.split(np.asarray(self._feed.order), self._num_batches)
    orders: list[Array] = jax.device_put(parts, self._feed.order.sharding)
    return orders

  def eval_chunks(self) -> Iterator[tuple[Feed, int]]:
    """Yields (feed, number of batches): every example once, the rest masked.

    Each feed gives one batch, so that an evaluation can be stopped between batches.
    """
    for order in self._eval_orders:
      yield dataclasses.replace(self._feed, order=order), 1
