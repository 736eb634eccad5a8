"""Reads CIFAR-10 and CIFAR-100 from the archives of their authors."""

from collections.abc import Iterator

from resnet_jax.data import ImageArrays
from resnet_jax.data.archives.rows import Files, Read, Row, Split
from resnet_jax.data.sources.cifar import load_cifar
from resnet_jax.runtime.errors import flags_of_settings


def reader(name: str) -> Read:
  """Returns a reader of "cifar10", or of "cifar100" with its fine labels."""

  def read(files: Files, split: str) -> Split:
    with flags_of_settings({"data.dir": "--from"}):
      arrays = load_cifar(name, files["archive"], split)
    assert isinstance(arrays, ImageArrays)
    return Split(arrays.class_names, _rows(arrays))

  return read


def _rows(arrays: ImageArrays) -> Iterator[Row]:
  for image, label in zip(arrays.images, arrays.labels, strict=True):
    yield Row(image, int(label))
