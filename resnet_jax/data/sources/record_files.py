"""Images in files of many records: Hugging Face parquet, and WebDataset's tars.

The functions open the splits of a data set that is stored in such files.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.config.schema import DataConfig
from resnet_jax.data import ImageArrays
from resnet_jax.data.images.decode import decode, open_image
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.sources import base, parquet, webdataset
from resnet_jax.data.sources.base import (
  EVAL_SPLITS,
  is_validation,
  part_of,
  split_name,
)
from resnet_jax.data.sources.records import Records, Table
from resnet_jax.data.sources.shards import (
  Shards,
  by_split,
  find_shards,
  has_shards,
  plain_split,
)
from resnet_jax.data.sources.stored_labels import class_names_of, encode, number_names
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
  """Returns the key of `KINDS` of the files in a folder or on the hub; "" if none."""
  if hugging_face.is_data_set(place):
    return "parquet"
  kinds = (kind for kind in KINDS if has_shards(place, KINDS[kind].suffix))
  return next(kinds, "")


def kind_of_files(name: str, place: str) -> str:
  """Returns the key of `KINDS` that reads a data set; "" if none does.

  A data set can be read from parquet files under the name that it has in TFDS, such as
  "cifar10".

  Args:
    name: `DataConfig.name`.
    place: `DataConfig.dir`.
  """
  if name in KINDS:
    return name
  is_named = name and place and name not in ("digits", "synthetic", "folder")
  return "parquet" if is_named and find_kind(place) == "parquet" else ""


def list_record_splits(kind: str, place: str) -> list[str]:
  """Returns the splits of a data set, for `open_records`."""
  return list(_splits(find_shards(place, KINDS[kind].suffix)))


def _splits(shards: Shards) -> dict[str, list[str]]:
  """Returns the files of each split.

  If there is only one split, and it is not for evaluation, it is divided into "train"
  and "val".
  """
  found = by_split(shards)
  if len(found) == 1 and not found.keys() & {"validation", "test"}:
    return dict.fromkeys(_PARTS, *found.values())
  return found


def open_records(
  config: DataConfig, split: str, kind: str, class_names: Sequence[str] = ()
) -> Records | ImageArrays:
  """Opens a split.

  Args:
    config: names the data set in `dir`.
    split: name of the split, or a part of one in TFDS's syntax, such as "train[:80%]";
      "" is the first of `EVAL_SPLITS` that exists.
    kind: key of `KINDS`.
    class_names: names of the classes, if the files do not tell them.

  Returns:
    `ImageArrays` if `config.train_crop` is "", all images have one size, and they take
    at most `MAX_GIB`. Otherwise `Records`.

  Raises:
    UserError: the split does not exist or is empty, files are damaged or missing, or a
      label is not of the kind that `config.labels` names.
    NotFoundError: there are no files.
  """
  shards = find_shards(config.dir, KINDS[kind].suffix)
  splits = _splits(shards)
  names = {plain_split(name): name for name in splits}
  split = split or next(
    (name for name in EVAL_SPLITS if plain_split(name) in names), ""
  )
  whole = names.get(plain_split(split.partition("[")[0]))
  if whole is None:
    raise UserError(
      f"{split_name()}={split!r} is not in {config.dir!r}; there are: "
      f"{', '.join(splits)}"
      + ("" if split else "; name one of them, or a part, such as train[90%:]")
    )
  table = KINDS[kind].open(shards.local(splits[whole]), config)
  known = table.class_names or tuple(class_names)
  if config.labels != "numbers" and not known:
    first = table
    if "train" in splits and splits["train"] != splits[whole]:
      first = KINDS[kind].open(shards.local(splits["train"]), config)
    known = class_names_of(first.labels, config.labels)
  where = f"{config.dir} {whole}"
  labels = encode(table.labels, config.labels, known, where)
  if config.labels == "numbers":
    known = number_names(labels.shape[1])
  records = Records(table.reader, np.arange(len(labels)), labels, known)
  if set(splits) == set(_PARTS) and splits["train"] is splits["val"]:
    every = [records.name(i).encode() for i in range(len(records))]
    is_val = is_validation(every, labels, config.val_share)
    records = records.select(np.flatnonzero(is_val == (whole == "val")))
  if "[" in split:
    part = whole + split[split.index("[") :]
    records = records.select(part_of(len(records), whole, part))
  if not len(records):
    raise UserError(f"{split_name()}={split!r} of {config.dir!r} is empty")
  return records if config.train_crop else _decoded(records, config.max_pixels)


def _decoded(records: Records, max_pixels: int) -> Records | ImageArrays:
  """Decodes all images, if they have one size and fit into memory."""
  images: np.ndarray | None = None
  is_gray = True
  for index in range(len(records)):
    data, _ = records[index]
    try:
      head = open_image(data, max_pixels)
      image = decode(data, head)
    except ImageError as error:
      raise UserError(f"{records.name(index)}: {error}") from error
    if images is None:
      if len(records) * image.size > base.MAX_GIB * 2**30:
        return records
      images = np.empty((len(records), *image.shape), np.uint8)
    if image.shape != images.shape[1:]:
      return records
    images[index] = image
    is_gray &= head.mode in ("1", "L")
  assert images is not None
  images = images[..., :1] if is_gray else images
  return ImageArrays(images, records.labels, records.class_names)
