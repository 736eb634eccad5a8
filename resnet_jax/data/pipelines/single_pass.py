"""Single-pass image loading for inference, in order and without labels.

Letters: N images, B batch, S side, C channels.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import jax.numpy as jnp
import numpy as np

from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data import ImageArrays, Source, is_in_memory
from resnet_jax.data.batches.preprocess import resize_and_crop
from resnet_jax.data.images.crops import EvalTransform
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.pipelines.host_batches import (
  Batches,
  HostBatch,
  Transform,
  count_threads,
  iterate,
)
from resnet_jax.data.sources.file_list import (
  FileList,
  files_below,
  is_image,
  no_images,
)
from resnet_jax.runtime.arrays import UInt
from resnet_jax.runtime.errors import NotFoundError


def find_images(places: Sequence[str]) -> FileList:
  """Lists files, and all images in folders and their subfolders.

  Args:
    places: files with any suffix, and folders.

  Returns:
    The files; those of a folder are sorted by name. All labels are 0.

  Raises:
    FileNotFoundError: a file or folder does not exist.
    ValueError: a folder has no images.
  """
  paths: list[str] = []
  for place in places:
    if os.path.isdir(place):
      every = files_below(Path(place))
      found = list(filter(is_image, every))
      if not found:
        raise no_images(Path(place), every, "name another one")
      paths += [str(Path(place).parent / path) for path in found]
    elif os.path.exists(place):
      paths.append(place)
    else:
      raise NotFoundError(f"there is no image or folder {place!r}")
  return FileList("", paths, [0] * len(paths), [""])


def read_batches(
  source: Source,
  preprocessing: Preprocessing,
  batch_size: int,
  max_pixels: int,
  channels: int = 3,
  transform: Transform | None = None,
) -> Iterator[HostBatch]:
  """Yields all images, resized and cropped as in evaluation.

  Args:
    source: the images.
    preprocessing: how to resize and crop them.
    batch_size: B; the last batch is padded.
    max_pixels: see `open_image`.
    channels: C of images that are decoded.
    transform: maps a file to pixels in place of these settings.

  Yields:
    "image" [B, S, S, C] uint8 or uint16, "label" [B] int32, "mask" [B] bool and
    "errors", a list of (index, text). The mask is False for padding and for unreadable
    images.

  Raises:
    ValueError: the images of an `ImageArrays` are smaller than the crop.
  """
  if is_in_memory(source):
    yield from _slices(source, preprocessing, batch_size)
    return
  length = math.ceil(len(source) / batch_size) * batch_size
  batches = Batches(
    source=source,
    transform=transform or _transform(preprocessing, max_pixels, channels),
    order=grain.MapDataset.range(length),
    batch_size=batch_size,
    rows=(0, batch_size),
    seed=0,
    replace=False,
    num_threads=count_threads(),
  )
  yield from iterate(batches, 0, num_workers=0)


def read_image(
  source: Source,
  index: int,
  preprocessing: Preprocessing,
  max_pixels: int,
  channels: int = 3,
) -> UInt[np.ndarray, "s s c"]:
  """Returns one image, resized and cropped as in `read_batches`.

  Raises:
    ImageError: it cannot be read.
  """
  if is_in_memory(source):
    one = dataclasses.replace(
      source, images=source.images[[index]], labels=source.labels[[index]]
    )
    image: np.ndarray = next(_slices(one, preprocessing, 1))["image"][0]
    return image
  transform = _transform(preprocessing, max_pixels, channels)
  return transform(source[index][0], np.random.default_rng())


def _transform(
  preprocessing: Preprocessing, max_pixels: int, channels: int
) -> EvalTransform:
  return EvalTransform(
    preprocessing.resize,
    preprocessing.crop,
    preprocessing.interpolation,
    max_pixels,
    PixelFormat(channels, preprocessing.max_value),
  )


def _slices(
  source: ImageArrays, preprocessing: Preprocessing, size: int
) -> Iterator[HostBatch]:
  for start in range(0, len(source.images), size):
    part = np.arange(start, start + size)
    mask = part < len(source.images)
    part = np.minimum(part, len(source.images) - 1)
    image = resize_and_crop(
      jnp.asarray(source.images[part]),
      preprocessing.resize,
      preprocessing.crop,
      preprocessing.interpolation,
    )
    label = source.labels[part]
    yield {"image": np.asarray(image), "label": label, "mask": mask, "errors": []}
