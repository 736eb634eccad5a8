"""Where images come from: a split as two arrays, or to be read bit by bit.

Letters: N examples, H height, W width, C channels.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.config import DataConfig, check_choice
from resnet_jax.data.files import FileList, ImageError, find_root, list_images

# Largest split that is kept on the device, in GiB; CIFAR-10 has 0.14.
MAX_GIB = 8


@dataclasses.dataclass(frozen=True)
class Source:
  """One split in host memory.

  Attributes:
    images: [N, H, W, C] uint8.
    labels: [N] int32 in [0, len(class_names)).
    class_names: of every label of the data set.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.images)

  def name(self, index: int) -> str:
    """Returns what an image is called where it has no file."""
    return f"image {index}"


_DIGITS = tuple(map(str, range(10)))


_SPLITS = "train", "test"


def _built_in(split: str) -> str:
  """Returns which of the built-in sets' splits is meant, or is a part of it."""
  name = split.partition("[")[0]
  check_choice("config.data.train_split or eval_split", name, _SPLITS)
  return name


def _cut(source: Source, name: str, split: str) -> Source:
  """Returns the part of a split that TFDS's syntax names.

  Args:
    source: the whole split.
    name: of it.
    split: such as "train[:80%]".

  Raises:
    ValueError: it is none.
  """
  if split == name:
    return source
  import tensorflow_datasets as tfds

  try:
    whole = tfds.core.SplitInfo(name=name, shard_lengths=[len(source)], num_bytes=0)
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute({name: whole})
    every = np.arange(len(source))
    index = np.concatenate([every[part.from_ : part.to] for part in parts])
  except (ValueError, AssertionError) as error:
    raise ValueError(
      f"config.data.train_split or eval_split={split!r}: {error}"
    ) from error
  if not len(index):
    raise ValueError(f"config.data.train_split or eval_split={split!r} is empty")
  images, labels = source.images[index], source.labels[index]
  return dataclasses.replace(source, images=images, labels=labels)


def load_digits(split: str) -> Source:
  """scikit-learn's handwritten digits: 1,437 training and 360 test images, 8x8x1.

  Args:
    split: "train" or "test", fixed, stratified by digit; or a part, "train[:80%]".

  Raises:
    ValueError: another split.
  """
  name = _built_in(split)
  import sklearn.datasets
  import sklearn.model_selection

  digits = sklearn.datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  train, test = sklearn.model_selection.train_test_split(
    np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
  )
  index = train if name == "train" else test
  return _cut(Source(images[index], labels[index], _DIGITS), name, split)


def load_synthetic(split: str, image_size: int, num_examples: int) -> Source:
  """Noise around a random pattern for each of 10 classes: easy to learn, free to make.

  Args:
    split: "train" or "test", which differ in their noise only; or a part of one.
    image_size: H and W; C is 3.
    num_examples: N.

  Raises:
    ValueError: another split.
  """
  name = _built_in(split)
  patterns = np.random.default_rng(0).uniform(64, 192, (10, image_size, image_size, 3))
  rng = np.random.default_rng(1 + _SPLITS.index(name))
  labels = rng.integers(0, 10, num_examples, dtype=np.int32)
  noise = rng.standard_normal((num_examples, image_size, image_size, 3), np.float32)
  images = np.clip(patterns[labels] + 32 * noise, 0, 255).astype(np.uint8)
  return _cut(Source(images, labels, _DIGITS), name, split)


@dataclasses.dataclass(frozen=True)
class TfdsImages:
  """A split of a TFDS set whose images are not decoded: [i] is (content, label).

  Attributes:
    records: TFDS's data source.
    class_names: of the labels.
    where: the set, for messages.
  """

  records: Any
  class_names: tuple[str, ...]
  where: str

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    """Reads a record; raises `ImageError` if it cannot."""
    try:
      example = self.records[index]
    except Exception as error:  # array_record raises all kinds.
      raise ImageError(f"it cannot be read ({error})") from error
    if example["label"] < 0:
      raise ImageError("it has no label; name another split")
    return example["image"], int(example["label"])

  def name(self, index: int) -> str:
    """Returns what a message calls the image."""
    return f"image {index} of {self.where}"


def load_tfds(
  name: str, data_dir: str, split: str, stream: bool = False
) -> Source | TfdsImages:
  """Opens a split of a prepared TFDS set, without TensorFlow.

  Args:
    name: such as "cifar10" or "mnist:3.0.1".
    data_dir: TFDS data directory; "" is TFDS's default.
    split: in TFDS's syntax, such as "train[:45000]"; "" is "validation" or, where
      there is none, "test".
    stream: read bit by bit even what would fit on the device.

  Returns:
    Arrays, if the images are of one size and no more than `MAX_GIB`.

  Raises:
    ValueError: an unknown or empty split, damaged files, or a set that is no image
      classification.
    FileNotFoundError: the set is not there in array_record form.
  """
  import absl.logging
  import tensorflow_datasets as tfds

  root = Path(os.path.expanduser(data_dir or "~/tensorflow_datasets"))
  where = f"data set {name!r} in config.data.dir={str(root)!r}"
  builder = _tfds_builder(name, root, where)
  image, label = _check_features(builder.info.features, where)
  if not split:
    split = "validation" if "validation" in builder.info.splits else "test"
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.ERROR)  # It advises to install OpenCV.
  try:
    count = builder.info.splits[split].num_examples
    if count == 0:
      raise ValueError("it is empty")
    if (
      stream or None in image.shape or count * math.prod(image.shape) > MAX_GIB * 2**30
    ):
      encoded = {"image": tfds.decode.SkipDecoding()}
      records = builder.as_data_source(split=split, decoders=encoded)
      return TfdsImages(records, tuple(label.names), f"{name} {split}")
    examples = builder.as_data_source(split=split).__getitems__(range(count))
  except ValueError as error:
    raise ValueError(
      f"config.data.train_split or eval_split={split!r} of {where}: {error}"
    ) from error
  except (RuntimeError, OSError) as error:
    raise ValueError(f"{where} is damaged: {error}; prepare it anew") from error
  finally:
    absl.logging.set_verbosity(verbosity)
  images = np.stack([example["image"] for example in examples])
  labels = np.array([example["label"] for example in examples], np.int32)
  if labels.min() < 0:
    raise ValueError(f"split {split!r} of {where} has no labels; name another one")
  return Source(images, labels, tuple(label.names))


def _tfds_builder(name: str, root: Path, where: str):
  """Returns the builder of a prepared array_record set."""
  import tensorflow_datasets as tfds
  from google.protobuf.json_format import ParseError

  build = f"tfds build {name} --data_dir={root} --file_format=array_record"
  missing = FileNotFoundError(
    f"no {where}: prepare it with `pip install tensorflow && {build}`, or set "
    f"config.data.dir to the directory that holds {name.split(':')[0]}/<version>/"
    "dataset_info.json"
  )
  if name.startswith("huggingface:"):  # TFDS would ask the network.
    raise missing
  try:
    builder = tfds.builder(name, data_dir=root, try_gcs=False)
    if not builder.info.splits:
      raise missing
  except ParseError as error:
    raise ValueError(f"{where} is damaged: {error}; prepare it anew") from error
  except (
    tfds.core.registered.DatasetNotFoundError,
    AssertionError,
    ImportError,
    ValueError,
  ) as error:
    raise missing from error
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise FileNotFoundError(
      f"{where} is stored as {builder.info.file_format.value}; array_record is "
      f"needed: `{build}`"
    )
  return builder


def _check_features(features, where: str):
  """Returns the features of uint8 images and of their class labels."""
  import tensorflow_datasets as tfds

  known = {"image", "label"} <= set(features)
  if not known or not isinstance(features["label"], tfds.features.ClassLabel):
    raise ValueError(
      f"{where} has the features {sorted(features)}; an 'image' and a class "
      "'label' are needed"
    )
  image = features["image"]
  if image.np_dtype != np.uint8:
    raise ValueError(f"{where} has images of {image.np_dtype}; uint8 is needed")
  return image, features["label"]


def open_source(
  config: DataConfig, split: str, class_names: Sequence[str] = ()
) -> Source | TfdsImages | FileList:
  """Opens a split of the configured data set; errors as the loaders above.

  Args:
    config: which data set.
    split: "" is the data set's own for evaluation.
    class_names: those of a model; a folder may have some of them only.
  """
  if "://" in config.dir:
    raise ValueError(
      f"config.data.dir={config.dir!r} must be a local path; mount remote storage"
    )
  if not config.name:
    raise ValueError("config.data.name must name a data set; these weights have none")
  if config.name == "digits":
    return load_digits(split or "test")
  if config.name == "synthetic":
    return load_synthetic(split or "test", config.image_size, config.num_examples)
  if config.name == "folder":
    root = find_root(config.dir)
    files = list_images(root, split, config.val_share, class_names)
    if not len(files):
      raise ValueError(
        f"config.data.val_share={config.val_share} of the images of any class in "
        f"{str(root)!r} leaves none for {split or 'evaluation'}; change it or add some"
      )
    return files
  return load_tfds(config.name, config.dir, split, stream=bool(config.train_crop))
