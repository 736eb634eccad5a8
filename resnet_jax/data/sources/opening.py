"""Opens the data set that a config names."""

import dataclasses
import sys
from collections.abc import Sequence

import jax

from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.config.factories import call_factory
from resnet_jax.config.schema import DataConfig
from resnet_jax.data import (
  ImageArrays,
  ImageCount,
  ImageSource,
  Source,
  count_images,
)
from resnet_jax.data.sources.built_in import load_digits, load_synthetic
from resnet_jax.data.sources.cifar import find_cifar, load_cifar
from resnet_jax.data.sources.coco import BoxedFiles, list_boxed_images
from resnet_jax.data.sources.folder import check_local, find_root, list_images
from resnet_jax.data.sources.masks import MaskedFiles, list_masked_images
from resnet_jax.data.sources.record_files import (
  KINDS,
  find_kind,
  open_records,
  record_settings,
)
from resnet_jax.data.sources.tfds import load_tfds
from resnet_jax.runtime.errors import UserError, setting_name
from resnet_jax.runtime.terminal import printable


def check_data(config: DataConfig) -> dict[str, ImageCount]:
  """Opens both splits without starting a device; errors as in `open_source`.

  Returns:
    The `ImageCount` of "training" and of "evaluation"; {} for the user's own data set.
  """
  if config.factory:
    return {}
  # With a crop, images are decoded one by one during the run, so none is decoded here.
  config = dataclasses.replace(config, train_crop="random")
  found = {}
  splits = {"training": config.train_split, "evaluation": config.eval_split}
  for kind, split in splits.items():
    source = _find_source(config, split)
    _say_left_out(source, config, split)
    found[kind] = count_images(source)
  return found


def open_source(
  config: DataConfig, split: str, class_names: Sequence[str] = ()
) -> Source:
  """Opens a split of the configured data set; errors as in the loaders that it calls.

  Args:
    config: names the data set.
    split: name of the split; "" is the data set's evaluation split.
    class_names: class names of a model; a folder may have only some of them.
  """
  source = _find_source(config, split, class_names)
  if jax.process_index() == 0:
    _say_left_out(source, config, split)
  return source


def _say_left_out(source: Source, config: DataConfig, split: str) -> None:
  if left_out := getattr(source, "left_out", ()):
    place = find_root(config.dir)
    text = f"left out of {split or 'evaluation'} in {place}: {', '.join(left_out)}"
    print(printable(text), file=sys.stderr)


def _find_source(
  config: DataConfig, split: str, class_names: Sequence[str] = ()
) -> Source:
  if config.factory:
    kinds = ImageArrays, ImageSource
    own: Source = call_factory(
      config.factory, "data.factory", config, split, returns=kinds
    )
    return own
  if records := record_settings(config):
    return open_records(records, split, class_names)
  check_local(config.dir)
  if not config.name:
    raise UserError(
      f"{setting_name('data.name')} must name a data set, because none is saved with "
      "the weights"
    )
  if config.labels in DENSE_LABELS:
    return _find_dense(config, split, class_names)
  if config.labels != "class" and config.name != "folder":
    raise UserError(
      f"config.data.labels={config.labels!r} needs a .csv file of path,label, parquet "
      "or WebDataset files, or your own data set, not "
      f"{setting_name('data.name')}={config.name!r}"
    )
  if config.name == "digits":
    return load_digits(split or "test")
  if config.name == "synthetic":
    return load_synthetic(split or "test", config.image_size, config.num_examples)
  if config.name == "folder":
    root = find_root(config.dir)
    try:
      files = list_images(root, split, config.val_share, class_names, config.labels)
    except UserError as error:
      if not (kind := find_kind(config.dir)):
        raise
      text = f"{error}; for its {KINDS[kind].suffix} files, set "
      raise UserError(f"{text}{setting_name('data.name')}={kind}") from error
    if not len(files):
      raise UserError(
        f"a share of {config.val_share} of the images of each class in {str(root)!r} "
        f"leaves none for {split or 'evaluation'}; change "
        f"{setting_name('data.val_share')} or add images"
      )
    return files
  stream = bool(config.train_crop)
  if path := find_cifar(config.name, config.dir):
    return load_cifar(config.name, path, split or "test", stream)
  return load_tfds(config.name, config.dir, split, stream)


def _find_dense(
  config: DataConfig, split: str, class_names: Sequence[str]
) -> MaskedFiles | BoxedFiles:
  """Opens images with masks or boxes."""
  if config.name != "folder":
    raise UserError(
      f"config.data.labels={config.labels!r} needs {setting_name('data.name')}=folder "
      f"or your own data set, not {config.name!r}"
    )
  root = find_root(config.dir)
  if config.labels == "mask":
    return list_masked_images(root, split, config.val_share, class_names)
  return list_boxed_images(root, split, is_training=split == config.train_split)
