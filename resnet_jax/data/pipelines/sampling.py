"""Orders of training images: balanced between classes, or with repeated images."""

import sys

import numpy as np

from resnet_jax.data import Source, known_labels
from resnet_jax.data.pipelines.host_batches import Order
from resnet_jax.runtime.arrays import Float64, Int
from resnet_jax.runtime.errors import UserError


def labels_of(source: Source) -> Int[np.ndarray, " n"]:
  """Returns the labels of all images.

  Raises:
    UserError: they are not known before the images are read.
  """
  labels = known_labels(source)
  if labels is None:
    raise UserError(
      "config.data.sampling=balanced needs the labels of all images before they are "
      "read, which this data set does not tell; set config.data.sampling=all"
    )
  return labels


def balanced_shares(labels: Int[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
  """Returns the probability of each image; those of a class add up to the same."""
  _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
  shares: np.ndarray = 1 / (len(counts) * counts[places])
  return shares


class BalancedOrder:
  """An endless order of images: [i] is a function of (seed, i) only.

  A class is drawn first, and then one of its images. It must be picklable.
  """

  def __init__(self, labels: Int[np.ndarray, " n"], seed: int):
    by_class = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[by_class], return_index=True)
    self._images = np.split(by_class, starts[1:])
    self._seed = seed

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, i: int) -> int:
    key = np.array([self._seed, i], np.uint64)
    random = np.random.Generator(np.random.Philox(key=key))
    images = self._images[random.integers(len(self._images))]
    return int(images[random.integers(len(images))])


class RepeatedOrder:
  """An order with each image several times in a row; it must be picklable."""

  def __init__(self, order: Order, repeats: int):
    self._order, self._repeats = order, repeats

  def __len__(self) -> int:
    return min(sys.maxsize, len(self._order) * self._repeats)

  def __getitem__(self, i: int) -> int:
    return self._order[i // self._repeats]
