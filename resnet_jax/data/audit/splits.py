"""Opens all splits of a data set, to check them."""

import dataclasses

from resnet_jax.config.schema import DataConfig
from resnet_jax.data.sources.base import SPLITS
from resnet_jax.data.sources.cifar import EncodedImages, find_cifar, load_cifar
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.data.sources.folder import find_root, list_images, list_splits
from resnet_jax.data.sources.record_files import (
  list_record_splits,
  open_records,
  record_settings,
)
from resnet_jax.data.sources.records import Records
from resnet_jax.data.sources.stored_labels import UnlabelledError
from resnet_jax.data.sources.tfds import TfdsImages, load_tfds
from resnet_jax.runtime.errors import UserError, setting_name

Images = FileList | Records | TfdsImages | EncodedImages


def open_splits(
  config: DataConfig,
) -> tuple[dict[str, Images], dict[str, str], list[dict[str, str]]]:
  """Returns the opened splits, the skipped ones, and those that cannot be listed."""
  opened: dict[str, Images] = {}
  skipped, refused = {}, []
  if config.name == "folder":
    root = find_root(config.dir)
    for split in list_splits(root, config.labels):
      try:
        opened[split] = list_images(root, split, config.val_share, kind=config.labels)
      except (ValueError, OSError) as error:
        if not opened:
          raise
        refused.append({"file": str(root / split), "reason": str(error)})
  elif config.name in ("digits", "synthetic"):
    raise UserError(
      f"{setting_name('data.name')}={config.name!r} is built in: nothing to check"
    )
  elif found := record_settings(config):
    encoded = dataclasses.replace(found, train_crop="center")
    for split in list_record_splits(encoded):
      try:
        records = open_records(encoded, split)
      except UnlabelledError:
        skipped[split] = "its images have no labels"
      except UserError as error:
        if not opened:
          raise
        refused.append({"file": f"{config.dir} {split}", "reason": str(error)})
      else:
        assert isinstance(records, Records)
        opened[split] = records
  elif path := find_cifar(config.name, config.dir):
    for split in SPLITS:
      images = load_cifar(config.name, path, split, stream=True)
      assert isinstance(images, EncodedImages)
      opened[split] = images
  else:
    whole = load_tfds(config.name, config.dir, "all", stream=True)
    assert isinstance(whole, TfdsImages)
    for split, info in whole.records.dataset_info.splits.items():
      if not info.num_examples:  # TFDS cannot open it.
        skipped[split] = "it has no images"
        continue
      part = load_tfds(config.name, config.dir, split, stream=True)
      assert isinstance(part, TfdsImages)
      opened[split] = part
  for split in list(opened):
    if why := _why_skipped(opened[split]):
      skipped[split] = why
      del opened[split]
  if not opened:
    raise UserError(
      f"{setting_name('data.name')}={config.name!r} has no images with labels"
    )
  return opened, skipped, refused


def _why_skipped(source: Images) -> str:
  if not len(source):
    return "it has no images"
  if isinstance(source, TfdsImages):
    try:
      if source.records[0]["label"] < 0:
        return "its images have no labels"
    except Exception:  # The scan will say what is wrong with it.
      pass
  return ""
