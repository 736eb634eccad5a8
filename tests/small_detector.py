"""A detector that trains in seconds, and images of bright rectangles, its objects."""

import numpy as np

from resnet_jax.data import ImageArrays
from resnet_jax.models.detection import RetinaNet
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stems import DeepStem

NAMES = ("small", "large")


def tiny_detector(num_classes: int = len(NAMES)) -> RetinaNet:
  """Returns a detector with anchors from 8 pixels on at every fourth pixel."""
  net = ResNet(stage_sizes=(1, 1, 1), features=4, stem_cls=DeepStem)
  return RetinaNet(net, num_classes, features=8, smallest_anchor=8)


def bright_boxes(count: int, size=(32, 32), seed=0, most=3) -> ImageArrays:
  """Returns dark images with up to `most` bright rectangles, each of its own grey."""
  rng = np.random.default_rng(seed)
  images = np.zeros((count, *size, 1), np.uint8)
  labels = np.zeros((count, most, 6), np.float32)
  labels[..., 4] = -1
  for image, rows in zip(images, labels, strict=True):
    row = 0
    for grey in range(100, 100 + int(rng.integers(1, most + 1))):
      height, width = rng.integers(6, 17, 2)
      top, left = rng.integers(size[0] - height + 1), rng.integers(size[1] - width + 1)
      place = slice(top, top + height), slice(left, left + width)
      if not image[place].any():  # All of each rectangle is visible.
        image[place] = grey
        is_large = height * width > 120
        rows[row] = left, top, left + width, top + height, is_large, 0
        row += 1
  return ImageArrays(images, labels, NAMES)


def create_network(settings) -> RetinaNet:
  """Returns the network, as `config.model.factory` needs it."""
  return tiny_detector(settings.num_classes)


def open_images(settings, split: str) -> ImageArrays:
  """Returns the images of a split, as `config.data.factory` needs them."""
  is_training = split == settings.train_split
  return bright_boxes(24 if is_training else 10, seed=is_training)
