"""Opens splits of TFDS data sets, as two arrays or to be read image by image.

Letters: N examples, H height, W width, C channels.
"""

import dataclasses
import json
import math
import os
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from google.protobuf.json_format import ParseError

from resnet_jax.data import ImageArrays
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.sources import base
from resnet_jax.data.sources.base import split_name
from resnet_jax.data.sources.cifar import URLS
from resnet_jax.runtime.errors import NotFoundError, UserError, setting_name

if TYPE_CHECKING:  # It takes seconds to import.
  import tensorflow_datasets as tfds

# The errors that TFDS raises for files that differ from what it writes.
_DAMAGE = (
  *(ParseError, json.JSONDecodeError, UnicodeDecodeError, RecursionError),
  *(AttributeError, KeyError, TypeError),
)


@dataclasses.dataclass(frozen=True)
class TfdsImages:
  """A split of a TFDS set whose images are not decoded: [i] is (content, label).

  Attributes:
    records: TFDS's data source.
    class_names: names of the labels, in order.
    where: name of the data set for messages.
  """

  records: Any
  class_names: tuple[str, ...]
  where: str

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    """Reads a record; raises `ImageError` if that fails."""
    try:
      example = self.records[index]
    except Exception as error:  # array_record raises errors of many types.
      raise ImageError(f"it cannot be read ({error})") from error
    if example["label"] < 0:
      raise ImageError("it has no label; name another split")
    return example["image"], int(example["label"])

  def name(self, index: int) -> str:
    """Returns the name of the image for messages."""
    return f"image {index} of {self.where}"


def is_prepared(name: str, data_dir: str) -> bool:
  """Whether a directory holds a TFDS data set of this name, of any configuration."""
  root = Path(os.path.expanduser(data_dir), re.split("[:/]", name)[0])
  return any(any(root.glob(f"{level}dataset_info.json")) for level in ("*/", "*/*/"))


def load_tfds(
  name: str, data_dir: str, split: str, stream: bool = False
) -> ImageArrays | TfdsImages:
  """Opens a split of a prepared TFDS set, without TensorFlow.

  Args:
    name: such as "cifar10" or "mnist:3.0.1".
    data_dir: TFDS data directory; "" is TFDS's default.
    split: in TFDS's syntax, such as "train[:45000]"; "" is "validation" or, if that
      does not exist, "test".
    stream: whether to read image by image, even if all images fit on the device.

  Returns:
    `ImageArrays`, if `stream` is False, all images have one size, and they take at most
    `MAX_GIB`. Otherwise `TfdsImages`.

  Raises:
    ValueError: the split is unknown or empty, files are damaged, or the data set is not
      for image classification.
    FileNotFoundError: the data set does not exist in array_record form.
  """
  import absl.logging
  import tensorflow_datasets as tfds

  root = Path(os.path.expanduser(data_dir or "~/tensorflow_datasets"))
  where = f"data set {name!r} in {setting_name('data.dir')}={str(root)!r}"
  builder = _tfds_builder(name, root, where)
  _read_as_array_record(builder, where)
  image, label = _check_features(builder.info.features, where)
  if not split:
    split = "validation" if "validation" in builder.info.splits else "test"
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS advises to install OpenCV.
  try:
    for part in split.split("+"):  # TFDS counts the images of train[9:5] as -4.
      if builder.info.splits[part.strip()].num_examples <= 0:
        raise UserError(f"{part.strip()!r} is empty")
    info = builder.info.splits[split]
    count = info.num_examples
    files = sorted({Path(part.filename) for part in info.file_instructions})
    if missing := [file.name for file in files if not file.exists()]:
      more = f" and {len(missing) - 1} more" if missing[1:] else ""
      raise NotFoundError(
        f"{where} is incomplete: of the {len(files)} files of {split!r}, {missing[0]}"
        f"{more} cannot be found; prepare or convert it again"
      )
    if (
      stream
      or None in image.shape
      or count * math.prod(image.shape) > base.MAX_GIB * 2**30
    ):
      encoded = {"image": tfds.decode.SkipDecoding()}
      records = builder.as_data_source(split=split, decoders=encoded)
      return TfdsImages(records, tuple(label.names), f"{name} {split}")
    examples = builder.as_data_source(split=split).__getitems__(range(count))
  except NotFoundError:
    raise
  except ValueError as error:
    raise UserError(f"{split_name()}={split!r} of {where}: {error}") from error
  except (RuntimeError, OSError) as error:
    raise UserError(f"{where} is damaged: {error}; prepare it anew") from error
  finally:
    absl.logging.set_verbosity(verbosity)
  images = np.stack([example["image"] for example in examples])
  labels = np.array([example["label"] for example in examples], np.int32)
  if (labels < 0).any():
    raise UserError(f"split {split!r} of {where} has no labels; name another one")
  return ImageArrays(images, labels, tuple(label.names))


def _tfds_builder(name: str, root: Path, where: str) -> "tfds.core.DatasetBuilder":
  """Returns the builder of a prepared set."""
  import tensorflow_datasets as tfds

  plain = name.split(":")[0]
  setting = setting_name("data.dir")
  how = (
    "prepare it with `pip install tensorflow apache-beam mlcroissant && tfds build "
    f"{name} --data_dir={root} --file_format=array_record`, or set {setting} to the "
    f"directory that holds {plain}/<version>/dataset_info.json"
  )
  official = re.sub(r"[\W_]", "", plain).lower()  # "CIFAR-10" becomes "cifar10".
  if url := URLS.get(official):
    how = (
      f"download {url} and set {setting} to that file or its directory, with "
      f"{setting_name('data.name')}={official!r}; or {how}"
    )
  missing = NotFoundError(f"no {where}: {how}")
  if re.match(r"[\w-]+:[^\d*]", name):  # TFDS would look up a namespace online.
    raise missing
  try:
    with _own_classes_only(where):
      builder = tfds.builder(name, data_dir=root, try_gcs=False)
      splits = builder.info.splits
    if not splits:
      raise missing
  except UserError:
    raise
  except _DAMAGE as error:
    raise UserError(f"{where} is damaged: {error!r:.200}; prepare it anew") from error
  except (
    tfds.core.registered.DatasetNotFoundError,
    tfds.core.dataset_info.DatasetInfoFileError,
    AssertionError,
    ImportError,
    ValueError,
  ) as error:
    raise missing from error
  return builder


def _read_as_array_record(builder: "tfds.core.DatasetBuilder", where: str) -> None:
  """Chooses the array_record files of a set, which may have other files beside them.

  Raises:
    UserError: there are none, or the package that reads them is not installed.
  """
  import tensorflow_datasets as tfds

  wanted, found = tfds.core.FileFormat.ARRAY_RECORD, builder.info.file_format
  if found != wanted:
    # `tfds convert_format` keeps the old format in the set's description.
    if not any(Path(builder.data_dir).glob(f"*.{wanted.file_suffix}*")):
      raise NotFoundError(
        f"{where} is stored as {found.value if found else 'an unknown format'}, but "
        "array_record files are needed; add them with `pip install tensorflow "
        "apache-beam mlcroissant && tfds convert_format "
        f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record "
        "--only_log_errors`"
      )
    builder.info.set_file_format(wanted, override=True, override_if_initialized=True)
  try:
    import array_record  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"{where} needs the package array_record: `pip install array_record`. There is "
      "none for Windows; use WSL 2, or image files"
    ) from error


def _own_classes_only(where: str) -> AbstractContextManager[object]:
  """Makes TFDS refuse classes of other packages, which the files of a set may name.

  TFDS would import their modules. Several files can name them in several ways, so the
  name is checked where TFDS looks up the class.
  """
  import tensorflow_datasets as tfds

  connector = tfds.features.FeatureConnector
  find = connector.cls_from_name

  def check(name: str) -> Any:
    if not name.startswith("tensorflow_datasets."):
      raise UserError(
        f"{where} names the class {name!r}, which is not one of TFDS; prepare the data "
        "set with TFDS's own features"
      )
    return find(name)

  return mock.patch.object(connector, "cls_from_name", check)


def _check_features(
  features: "tfds.features.FeaturesDict", where: str
) -> tuple["tfds.features.Image", "tfds.features.ClassLabel"]:
  """Returns the features of uint8 images and of their class labels."""
  import tensorflow_datasets as tfds

  known = {"image", "label"} <= set(features)
  if not known or not isinstance(features["label"], tfds.features.ClassLabel):
    raise UserError(
      f"{where} has the features {sorted(features)}; an 'image' and a class "
      "'label' are needed"
    )
  image = features["image"]
  if image.np_dtype != np.uint8:
    raise UserError(f"{where} has images of {image.np_dtype}; uint8 is needed")
  return image, features["label"]
