"""Gives the input shapes of the training step, to compile it for absent devices.

Letters: N examples, K batches of a call, B batch, S side of the images.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from resnet_jax.config.plan import Plan
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.data import ImageArrays, is_in_memory
from resnet_jax.data.batch import TakeBatch
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.labels import LabelSpec
from resnet_jax.data.pipelines import resident, streaming
from resnet_jax.data.pipelines.opening import require_train_crop
from resnet_jax.data.sources.opening import open_source
from resnet_jax.runtime.arrays import PRNGKeyArray
from resnet_jax.runtime.mesh import chunk_sharding, replicated

# Number of images assumed for a streamed data set, because it is not opened. The number
# changes only constants in the compiled program.
_NUM_STREAMED = 1_281_167

# (shape, dtype) -> `jax.ShapeDtypeStruct`, which stands for an array of a feed.
_Abstract = Callable[[tuple[int, ...], DTypeLike], Any]


@dataclasses.dataclass(frozen=True)
class AbstractDataset:
  """The parts of a training set that compilation needs.

  Attributes:
    feed: argument of `train_chunk`, shapes only.
    take_batch: see `train_chunk`.
    image_shape: (H, W, C).
    num_examples: N, or an arbitrary number if the images are streamed.
    num_classes: 0 if the images are streamed.
  """

  feed: Any
  take_batch: TakeBatch[Any]
  image_shape: tuple[int, int, int]
  num_examples: int
  num_classes: int
  class_names: tuple[str, ...] = ()
  skipped: Mapping[int, str] = dataclasses.field(default_factory=dict)

  def train_chunks(self, key: PRNGKeyArray, step: int, plan: Plan) -> NoReturn:
    """There are no images."""
    raise NotImplementedError

  def eval_chunks(self) -> NoReturn:
    """There are no images."""
    raise NotImplementedError


def open_resident(config: DataConfig) -> ImageArrays | None:
  """Opens a training set that is kept on the devices; returns None if it is streamed.

  Raises:
    ValueError: see `open_source`.
    FileNotFoundError: the data set does not exist.
  """
  if config.train_crop:
    return None
  source = open_source(config, config.train_split)
  if is_in_memory(source):
    return source
  require_train_crop(config)
  return None


def create_abstract_dataset(
  config: Config, source: ImageArrays | None, mesh: Mesh
) -> AbstractDataset:
  """Returns the training set as shapes.

  Args:
    config: the settings.
    source: from `open_resident`.
    mesh: the devices; descriptions of devices are enough.
  """
  data, batch_size = config.data, config.batch_size
  whole: _Abstract = partial(jax.ShapeDtypeStruct, sharding=replicated(mesh))
  if source is None:
    split: _Abstract = partial(jax.ShapeDtypeStruct, sharding=chunk_sharding(mesh))
    number = max(_NUM_STREAMED, batch_size)
    rows = Plan.create(config, number).longest_call, batch_size
    shape = data.image_size, data.image_size, data.channels
    pixels = PixelFormat(data.channels, data.max_value)
    label = LabelSpec.of(data.labels, config.model.num_classes)
    # A mask is as large as its image. Padded boxes are few numbers, however many.
    sizes = (size or data.image_size for size in label.shape)
    batches = {
      "image": split(rows + shape, pixels.dtype),
      "label": split((*rows, *sizes), label.dtype),
      "mask": split(rows, jnp.bool_),
    }
    chunk = streaming.Chunk(batches, whole((), jnp.int32))
    return AbstractDataset(chunk, streaming.take_batch, shape, number, 0)
  count = len(source.images)
  feed = resident.Feed(
    image=whole(source.images.shape, source.images.dtype),
    label=whole(source.labels.shape, source.labels.dtype),
    order=whole((count,), jnp.int32),
  )
  take_batch, shape = resident.bind_take_batch(
    source.images,
    batch_size,
    mesh,
    resize=data.train_resize,
    interpolation=data.interpolation,
  )
  return AbstractDataset(feed, take_batch, shape, count, len(source.class_names))
