"""Masks and boxes, moved as the augmentation moves their images.

Shapes: B batch, H height, W width, M boxes. See `LabelSpec` for the labels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from resnet_jax.config.schema import Config
from resnet_jax.data.batches.preprocess import (
  draw_flips,
  draw_offsets,
  geometry_keys,
  random_crop,
  random_flip,
)
from resnet_jax.data.labels import IGNORED
from resnet_jax.runtime.arrays import Array, Float32, PRNGKeyArray, UInt8, prepend_axes


def move_masks(
  masks: UInt8[Array, "b h w"], key: PRNGKeyArray, *, padding: int, flip: bool
) -> UInt8[Array, "b h w"]:
  """Moves masks as `preprocess` moves images with the same key and settings.

  Pixels that a crop adds are ignored.
  """
  crop_key, flip_key = geometry_keys(key)
  images = masks[..., None]
  if padding:
    images = random_crop(crop_key, images, padding, fill=IGNORED)
  if flip:
    images = random_flip(flip_key, images)
  return images[..., 0]


def move_boxes(
  boxes: Float32[Array, "b m 6"],
  key: PRNGKeyArray,
  *,
  image_size: tuple[int, int],
  padding: int,
  flip: bool,
) -> Float32[Array, "b m 6"]:
  """Moves boxes as `preprocess` moves images with the same key and settings.

  Boxes are clipped to the image. One that loses its area keeps its place in the array,
  as a row of padding.

  Args:
    boxes: rows of x0, y0, x1, y1, class, crowd.
    key: the key of the images.
    image_size: height and width of the images.
    padding: see `random_crop`.
    flip: whether images are mirrored at random.
  """
  crop_key, flip_key = geometry_keys(key)
  height, width = image_size
  corners, rest = boxes[..., :4].reshape(*boxes.shape[:2], 2, 2), boxes[..., 4:]
  if padding:
    offsets = draw_offsets(crop_key, len(boxes), padding)
    # An offset of 0 shows the padding above and to the left of the image.
    corners += (padding - offsets)[:, None, None, ::-1]
    size = jnp.array([width, height], jnp.float32)
    corners = jnp.clip(corners, 0, prepend_axes(size, corners))
  if flip:
    x, y = corners[..., 0], corners[..., 1]
    turned = jnp.stack([width - x[..., ::-1], y], axis=-1)
    corners = jnp.where(draw_flips(flip_key, len(boxes)), turned, corners)
  has_area = (corners[..., 1, :] > corners[..., 0, :]).all(axis=-1)
  classes = jnp.where(has_area, rest[..., 0], -1)
  moved = [corners.reshape(*boxes.shape[:2], 4), classes[..., None], rest[..., 1:]]
  return jnp.concatenate(moved, axis=-1)


def create_move_labels(
  config: Config, image_shape: tuple[int, int, int]
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
  """Returns a function of (labels, key), or None if labels stay as they are.

  Args:
    config: the augmentation, and the kind of labels.
    image_shape: (H, W, C) of the images.
  """
  functions: dict[str, Callable[..., jax.Array]] = {
    "mask": move_masks,
    "boxes": partial(move_boxes, image_size=image_shape[:2]),
  }
  if (move := functions.get(config.data.labels)) is None:
    return None
  return partial(move, padding=config.augment.padding, flip=config.augment.flip)
