"""Images in files of many records: Hugging Face parquet, and WebDataset's tars.

The functions open the splits of a data set that is stored in such files.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.config.schema import DataConfig
from resnet_jax.data import ImageArrays
from resnet_jax.data.images.decode import decode, open_image
from resnet_jax.data.images.errors import ImageError, image_errors
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.sources import base, parquet, webdataset
from resnet_jax.data.sources.base import (
  EVAL_SPLITS,
  is_validation,
  part_of,
  split_name,
)
from resnet_jax.data.sources.cifar import find_cifar
from resnet_jax.data.sources.file_list import files_below
from resnet_jax.data.sources.folder import has_class_folders
from resnet_jax.data.sources.records import Records, Table
from resnet_jax.data.sources.shards import (
  Shards,
  by_split,
  find_shards,
  folder_of,
  plain_split,
)
from resnet_jax.data.sources.stored_labels import class_names_of, encode, number_names
from resnet_jax.data.sources.tfds import is_prepared
from resnet_jax.runtime import hugging_face
from resnet_jax.runtime.errors import UserError

_PARTS = "train", "val"  # Records without splits of their own are divided into these.


class Kind(NamedTuple):
  """A kind of file with many images.

  Attributes:
    suffix: of the files.
    open: (paths of files, settings) -> their records.
  """

  suffix: str
  open: Callable[[Sequence[Path], DataConfig], Table]


# The values of `data.name` for these kinds.
KINDS = {
  "parquet": Kind(".parquet", parquet.open_files),
  "webdataset": Kind(".tar", webdataset.open_files),
}


def find_kind(place: str) -> str:
  """Returns the key of `KINDS` of the files in a folder or on the Hub; "" if none.

  A folder that has class folders with images has no such kind, even if there are
  archives beside them.
  """
  if hugging_face.is_data_set(place):
    return "parquet"
  root = Path(os.path.expanduser(place))
  if root.is_dir() and has_class_folders(root):
    return ""
  names = files_below(root.absolute()) if root.is_dir() else [root.name]
  for name, kind in KINDS.items():
    if any(file.endswith(kind.suffix) for file in names):
      return name
  return ""


def record_settings(config: DataConfig) -> DataConfig | None:
  """Returns the settings that read a data set from record files, or None.

  A data set that has a name in TFDS, such as "cifar10", can also be stored in parquet
  files. The archives of CIFAR, and the files of TFDS, are preferred to these.
  """
  name, place = config.name, config.dir
  if name in KINDS:
    return config
  if not name or not place or name in ("digits", "synthetic", "folder"):
    return None
  if not hugging_face.is_data_set(place):
    if find_cifar(name, place) or is_prepared(name, place):
      return None
    place = folder_of(name, place, KINDS["parquet"].suffix)
  return dataclasses.replace(config, name="parquet", dir=place) if place else None


def list_record_splits(config: DataConfig) -> list[str]:
  """Returns the names of the splits that `open_records` opens."""
  return list(_splits(find_shards(config.dir, KINDS[config.name].suffix)))


def _splits(shards: Shards) -> dict[str, list[str]]:
  """Returns the files of each split.

  If there is only one split, and it is not for evaluation, it is divided into "train"
  and "val".
  """
  found = by_split(shards)
  if len(found) == 1 and not found.keys() & {"validation", "test"}:
    return dict.fromkeys(_PARTS, *found.values())
  return found


def _find_split(splits: Mapping[str, Any], split: str, place: str) -> str:
  """Returns the key of `splits` for the name of a split or of a part of one."""
  names = {plain_split(name): name for name in splits}
  asked = split.partition("[")[0]
  if not split:
    asked = next((x for x in EVAL_SPLITS if plain_split(x) in names), "")
  found = names.get(plain_split(asked))
  if found is None:
    raise UserError(
      f"{split_name()}={split!r} is not in {place!r}; there are: {', '.join(splits)}"
      + ("" if split else "; name one of them, or a part, such as train[90%:]")
    )
  return found


def open_records(
  config: DataConfig, split: str, class_names: Sequence[str] = ()
) -> Records | ImageArrays:
  """Opens a split.

  Args:
    config: `name` is a key of `KINDS`, and `dir` has the files.
    split: name of the split, or a part of one in TFDS's syntax, such as "train[:80%]";
      "" is the first of `EVAL_SPLITS` that exists.
    class_names: names of the classes in the order of the labels. By default, it is the
      order of the files, or of the training split if these do not name their classes.

  Returns:
    `ImageArrays` if `config.train_crop` is "", all images have one size, and they take
    at most `MAX_GIB`. Otherwise `Records`.

  Raises:
    UserError: the split does not exist or is empty, files are damaged or missing, or a
      label is not of the kind that `config.labels` names.
    NotFoundError: there are no files.
  """
  kind = KINDS[config.name]
  shards = find_shards(config.dir, kind.suffix)
  splits = _splits(shards)
  whole = _find_split(splits, split, config.dir)
  split = split or whole
  table = kind.open(shards.local(splits[whole]), config)
  names = tuple(class_names) or table.class_names
  if config.labels != "numbers" and not names:
    first = table
    if "train" in splits and splits["train"] != splits[whole]:
      first = kind.open(shards.local(splits["train"]), config)
    names = first.class_names or class_names_of(first.labels, config.labels)
  where = f"{config.dir} {whole}"
  if not len(table.labels):
    raise UserError(f"{where} has no images")
  labels = encode(table.labels, config.labels, names, where, table.class_names)
  if config.labels == "numbers":
    names = number_names(labels.shape[1])
  records = Records(table.reader, np.arange(len(labels)), labels, names)
  if splits.keys() == set(_PARTS) and splits["train"] is splits["val"]:
    images = [os.fsencode(name) for name in table.reader.names()]
    is_val = is_validation(images, labels, config.val_share)
    records = records.select(np.flatnonzero(is_val == (whole == "val")))
  if "[" in split:
    part = whole + split[split.index("[") :]
    records = records.select(part_of(len(records), whole, part))
  if not len(records):
    raise UserError(f"{split_name()}={split!r} of {config.dir!r} is empty")
  return records if config.train_crop else _decoded(records, config)


def _decoded(records: Records, config: DataConfig) -> Records | ImageArrays:
  """Decodes all images, if they have one size and fit into memory."""
  pixels = PixelFormat(config.channels, config.max_value)
  images: np.ndarray | None = None
  is_gray = pixels.channels == 3
  for index in range(len(records)):
    try:
      with image_errors():
        data, _ = records[index]
        head = open_image(data, config.max_pixels)
        image = decode(data, head, 1, pixels)
    except ImageError as error:
      raise UserError(f"{records.name(index)}: {error}") from error
    if images is None:
      if len(records) * image.nbytes > base.MAX_GIB * 2**30:
        return records
      images = np.empty((len(records), *image.shape), pixels.dtype)
    if image.shape != images.shape[1:]:
      return records
    images[index] = image
    is_gray &= head.mode in ("1", "L")
  assert images is not None
  images = images[..., :1] if is_gray else images
  return ImageArrays(images, records.labels, records.class_names)
