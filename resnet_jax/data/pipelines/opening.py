"""Opens data sets: chooses the source of the images and the pipeline of the batches."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.config.factories import call_factory
from resnet_jax.config.preprocessing import check_channels
from resnet_jax.config.schema import AugmentConfig, DataConfig
from resnet_jax.data import (
  Dataset,
  ImageSource,
  Source,
  count_classes,
  count_images,
  describe_change,
  is_in_memory,
  label_spec,
)
from resnet_jax.data.images.boxed_images import BoxedTransform
from resnet_jax.data.images.crops import EvalTransform, TrainTransform
from resnet_jax.data.images.masked_images import (
  MaskedEvalTransform,
  MaskedTrainTransform,
)
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.labels import IGNORED, has_objects
from resnet_jax.data.pipelines.host_batches import PairTransform, Transform
from resnet_jax.data.pipelines.resident import ResidentDataset
from resnet_jax.data.pipelines.streaming import StreamingDataset
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.data.sources.opening import open_source
from resnet_jax.data.sources.record_files import record_settings
from resnet_jax.data.sources.records import Records
from resnet_jax.runtime.errors import UserError, setting_name
from resnet_jax.runtime.mesh import check_batch_size, of_first_process
from resnet_jax.runtime.terminal import warn


def create_dataset(
  config: DataConfig,
  batch_size: int,
  mesh: Mesh,
  augment: AugmentConfig | None = None,
  class_names: Sequence[str] = (),
  source: Source | None = None,
) -> Dataset:
  """Opens the training or the evaluation split of the configured data set.

  Images that fit are copied to the devices immediately; others are read during the run.

  Args:
    config: names the data set.
    batch_size: over all devices.
    mesh: the devices.
    augment: augmentation of training; None opens the evaluation split.
    class_names: class names of a model to evaluate, if known.
    source: images to use instead of those that `config` names.

  Raises:
    ValueError: mean or std do not match the channels, the batch cannot be split over
      the devices, an image size is missing, or `open_source` refuses the data set.
    FileNotFoundError: the data set does not exist.
  """
  check_batch_size(batch_size, mesh)
  where = "the images"
  are_decoded = source is None and record_settings(config) is not None
  if source is None:
    split = config.eval_split if augment is None else config.train_split
    source = open_source(config, split, class_names)
    where = f"{setting_name('data.name')}={config.name!r}"
  if mesh.is_multi_process:
    _check_same_images(source, where)
  kind = label_spec(source).kind
  if kind != config.labels:
    raise UserError(
      f"the labels of {where} are {kind}, so set config.data.labels={kind!r}, not "
      f"{config.labels!r}"
    )
  if augment and kind == "class" and len(source.class_names) == 1:
    raise UserError(
      f"{where} has one class, {source.class_names[0]!r}: nothing to learn; name the "
      "folder that holds the classes"
    )
  if augment and isinstance(source, FileList | Records) and kind != "numbers":
    _check_all_classes(source, where)
  channels = config.channels
  if is_in_memory(source):
    if kind == "boxes" and not has_objects(source.labels):
      raise UserError(f"{where} has no box that is no crowd: nothing to learn or find")
    if kind == "mask" and (source.labels == IGNORED).all():
      raise UserError(f"all pixels of {where} are {IGNORED}, so none has a class")
    channels = int(source.images.shape[-1])
    _check_in_memory(config, channels, where, are_decoded)
  for field in ("mean", "std"):
    values = getattr(config, field)
    check_channels(f"{setting_name(f'data.{field}')}={values}", values, channels)
  if channels != 3 and augment and (augment.saturation or augment.hue):
    raise UserError(
      f"config.augment.saturation={augment.saturation} and hue={augment.hue} must be 0 "
      f"for images of {channels} channels"
    )
  if is_in_memory(source):
    sizes = config.train_resize, config.eval_resize, config.eval_crop
    height, width = source.images.shape[1:3]
    # A run of square images has their own size in its config.
    own = height if height == width else 0
    if kind in DENSE_LABELS and {*sizes} - {0, own}:
      raise UserError(
        f"{setting_name('data.train_resize')}, data.eval_resize and data.eval_crop are "
        f"{', '.join(map(str, sizes))}, and must be 0 for images in memory with "
        f"config.data.labels={kind!r}, as their labels would not be resized"
      )
    if augment and config.train_crop:
      raise UserError(
        f"config.data.train_crop={config.train_crop!r} must be '' for images that are "
        "in memory"
      )
    resize, crop = config.train_resize, 0
    if augment is None:
      resize, crop = config.eval_resize, config.eval_crop
    return ResidentDataset(
      source,
      batch_size,
      mesh,
      config.sampling == "balanced" and augment is not None,
      config.repeats,
      resize=resize,
      crop=crop,
      interpolation=config.interpolation,
    )
  return create_streaming(config, source, batch_size, mesh, augment)


def _check_in_memory(
  config: DataConfig, channels: int, where: str, are_decoded: bool
) -> None:
  """Raises `UserError` if a setting asks for other images than those in memory.

  Args:
    config: `channels` and `max_value` are checked.
    channels: C of the images.
    where: name of the images for messages.
    are_decoded: whether the images were decoded with these settings.
  """
  if config.channels not in (DataConfig().channels, channels):
    raise UserError(
      f"{setting_name('data.channels')}={config.channels} is for images that are "
      f"decoded during the run (config.data.train_crop); {where} is in memory, with "
      f"{channels} channel{'s' * (channels > 1)}"
    )
  if config.max_value and not are_decoded:
    raise UserError(
      f"{setting_name('data.max_value')}={config.max_value} is for images that are "
      f"decoded during the run; {where} is in memory: scale its uint16 images so that "
      "65535 counts as 1"
    )


def _check_same_images(source: Source, where: str) -> None:
  """Compares the images of all processes; each waits for the others.

  Raises:
    UserError: this process has other images than process 0.
  """
  own = count_images(source)
  first = json.loads(of_first_process(json.dumps(own)))
  if change := describe_change(tuple(first), own):
    raise UserError(
      f"process 0 has {first[0]:,} images of {where}, and in process "
      f"{jax.process_index()} {change}; give all processes the same images"
    )
  multihost_utils.sync_global_devices("all have the same images")


def _check_all_classes(files: FileList | Records, where: str) -> None:
  """Raises `UserError` if a class has no training image, as after a typo in a list."""
  several = [name for name in files.class_names if ";" in name]
  if several and files.labels.ndim == 1:
    warn(
      f"{where}: the label {several[0]!r} is taken as one class; "
      "config.data.labels=classes takes several classes an image"
    )
  counts = np.array(count_classes(files))
  if missing := [files.class_names[i] for i in np.flatnonzero(counts == 0)]:
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise UserError(
      f"{where} has no training image of {', '.join(map(repr, missing[:3]))}{more} "
      f"among its {len(files.class_names)} classes: add images, remove the folder, or "
      "correct the labels or class names; class numbers begin with 0 and have no gaps"
    )


def require_train_crop(config: DataConfig) -> None:
  """Raises `ValueError` if images of many sizes are not cropped to one size."""
  if not config.train_crop:
    raise UserError(
      "the images have many sizes, so config.data.train_crop='' must be "
      "'random_resized', 'random' or 'center', and config.data.image_size the size to "
      "cut them to; start from a config that sets both, such as "
      "--config=finetune_photos"
    )


def create_streaming(
  config: DataConfig,
  source: ImageSource,
  batch_size: int,
  mesh: Mesh,
  augment: AugmentConfig | None,
) -> StreamingDataset:
  """Returns a streamed data set; arguments and errors as for `create_dataset`."""
  transform: Transform | PairTransform
  pixels = PixelFormat(config.channels, config.max_value)
  if label_spec(source).kind in DENSE_LABELS:
    transform = _create_pair_transform(config, source, pixels, augment)
  elif augment is None:
    if not config.eval_crop:
      raise UserError(
        f"{setting_name('data.eval_crop')}=0 must be > 0, such as 224, because the "
        "images have many sizes and are cut to this size"
      )
    transform = EvalTransform(
      resize=config.eval_resize,
      crop=config.eval_crop,
      interpolation=config.interpolation,
      max_pixels=config.max_pixels,
      pixels=pixels,
    )
  else:
    require_train_crop(config)
    own = None
    if augment.image_factory:
      own = call_factory(augment.image_factory, "augment.image_factory", augment)
    transform = TrainTransform(
      crop=config.train_crop,
      resize=config.train_resize,
      size=config.image_size,
      min_area=config.min_area,
      interpolation=config.interpolation,
      policy=augment.policy,
      magnitude=augment.magnitude,
      max_pixels=config.max_pixels,
      own=own,
      pixels=pixels,
    )
  return StreamingDataset(
    source,
    transform,
    batch_size,
    mesh,
    max_skip_share=config.max_skip_share if config.on_error == "skip" else None,
    balanced=config.sampling == "balanced" and augment is not None,
    repeats=config.repeats,
    num_threads=config.num_threads,
    num_workers=config.num_workers,
  )


def _create_pair_transform(
  config: DataConfig,
  source: ImageSource,
  pixels: PixelFormat,
  augment: AugmentConfig | None,
) -> PairTransform:
  """Returns the transform of images with masks or boxes to squares.

  Raises:
    UserError: a setting has no meaning for it.
  """
  size = config.image_size
  if config.labels == "mask" and augment is None:
    size = config.eval_crop or size
  if augment is None and {config.eval_crop, config.eval_resize} - {0, size}:
    raise UserError(
      f"{setting_name('data.eval_crop')}={config.eval_crop} and eval_resize="
      f"{config.eval_resize} must be 0 or {size}, the side of the squares of "
      f"evaluation, with config.data.labels={config.labels!r}"
    )
  read: dict[str, Any] = {
    "interpolation": config.interpolation,
    "max_pixels": config.max_pixels,
    "pixels": pixels,
  }
  if config.labels == "boxes":
    most: Any = source
    return BoxedTransform(size, most.max_boxes, **read)
  classes = len(source.class_names)
  if augment is None:
    return MaskedEvalTransform(size, classes, **read)
  return MaskedTrainTransform(size, classes, resize=config.train_resize, **read)
