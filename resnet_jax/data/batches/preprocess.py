"""On-device preprocessing of image batches: pure functions of (key, images).

Shapes: B batch, H height, W width, C channels. Stored images are uint8 in [0, 255] or
uint16 in [0, 65535]. `to_grey_levels` brings both to [0, 255], the range of all
augmentations. `normalize` returns float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.config.factories import call_factory
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.data.batches.color_and_erasing import color_jitter, random_erasing
from resnet_jax.runtime.arrays import (
  AnyArray,
  Array,
  Bool,
  Float,
  Float32,
  Int,
  Num,
  PRNGKeyArray,
  UInt,
  prepend_axes,
)
from resnet_jax.runtime.errors import UserError, setting_name

# (key, images) -> images.
Augment = Callable[[jax.Array, jax.Array], jax.Array]


@runtime_checkable
class Preprocess(Protocol):
  """`preprocess` with its settings bound."""

  def __call__(
    self,
    images: UInt[Array, "b h w c"],
    key: PRNGKeyArray | None = None,
    *,
    size: int = 0,
  ) -> Float32[Array, "b _ _ c"]: ...


def to_grey_levels(images: Num[AnyArray, "b h w c"]) -> Num[Array, "b h w c"]:
  """Returns uint16 images as float32 in [0, 255], and others unchanged.

  65535 / 255 is 257, so a uint8 value v and the uint16 value 257 v are equal.
  """
  images = jnp.asarray(images)
  return images.astype(jnp.float32) / 257 if images.dtype == jnp.uint16 else images


def geometry_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
  """Returns the keys of `random_crop` and `random_flip` in `preprocess`."""
  crop_key, flip_key = jax.random.split(key)
  return crop_key, flip_key


def draw_offsets(key: PRNGKeyArray, count: int, padding: int) -> Int[Array, "b 2"]:
  """Returns where `random_crop` cuts, as rows and columns of the padded images."""
  return jax.random.randint(key, (count, 2), 0, 2 * padding + 1)


def draw_flips(key: PRNGKeyArray, count: int) -> Bool[Array, "b 1 1 1"]:
  """Returns which images `random_flip` mirrors."""
  return jax.random.bernoulli(key, shape=(count, 1, 1, 1))


def random_crop(
  key: PRNGKeyArray, images: Num[Array, "b h w c"], padding: int, fill: int = 0
) -> Num[Array, "b h w c"]:
  """Shifts each image by an independent random offset.

  Args:
    key: the same key always gives the same crops.
    images: any.
    padding: largest shift along each spatial axis, in pixels, >= 0.
    fill: value of the pixels from outside the image.

  Returns:
    Same dtype as `images`.
  """
  batch, *image_shape = images.shape
  offsets = draw_offsets(key, batch, padding)
  border = ((0, 0), (padding, padding), (padding, padding), (0, 0))

  def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), image_shape)

  return jax.vmap(crop)(jnp.pad(images, border, constant_values=fill), offsets)


def random_flip(
  key: PRNGKeyArray, images: Num[Array, "b h w c"]
) -> Num[Array, "b h w c"]:
  """Mirrors each image left to right with probability 1/2; the dtype stays."""
  return jnp.where(draw_flips(key, len(images)), images[:, :, ::-1], images)


def normalize(
  images: Num[Array, "b h w c"],
  mean: Sequence[float] | Float[AnyArray, " _"],
  std: Sequence[float] | Float[AnyArray, " _"],
  channel_order: str = "rgb",
) -> Float32[Array, "b h w c"]:
  """Returns (images / 255 - mean) / std, per channel.

  Args:
    images: in [0, 255], or uint16 in [0, 65535].
    mean: C values, or one for all channels, of pixels scaled to [0, 1].
    std: standard deviations, in the same form as `mean`.
    channel_order: "bgr" reverses the channels first; "rgb" does not.
  """
  images = to_grey_levels(images)
  if channel_order == "bgr":
    images = images[..., ::-1]
  # One multiplication and one subtraction per pixel.
  scale = 1 / (255 * jnp.array(std, jnp.float32))
  shift = jnp.array(mean, jnp.float32) / jnp.array(std, jnp.float32)
  pixels = images.astype(jnp.float32)
  return pixels * prepend_axes(scale, pixels) - prepend_axes(shift, pixels)


def renormalize(
  images: Float32[Array, "b h w c"], given: Preprocessing, wanted: Preprocessing
) -> Float32[Array, "b h w c"]:
  """Changes normalised images to another mean, standard deviation and channel order.

  Args:
    images: result of `normalize` with the values of `given`.
    given: how the images are normalised. Only mean, std and channel order count.
    wanted: how they are to be normalised.
  """
  is_reversed = given.channel_order != wanted.channel_order
  # Computed in float64 at trace time, so that equal values give exactly 1 and 0.
  (mean, std), (new_mean, new_std) = (
    (np.array(p.mean), np.array(p.std)) for p in (given, wanted)
  )
  if is_reversed:
    images, mean, std = images[..., ::-1], mean[::-1], std[::-1]
  scale, shift = std / new_std, (mean - new_mean) / new_std
  if (scale == 1).all() and (shift == 0).all():
    return images
  scale, shift = (jnp.asarray(values, jnp.float32) for values in (scale, shift))
  return images * prepend_axes(scale, images) + prepend_axes(shift, images)


def create_normalize(data: DataConfig) -> Callable[[jax.Array], jax.Array]:
  """Returns `normalize` with the settings of the images."""
  return partial(
    normalize, mean=data.mean, std=data.std, channel_order=data.channel_order
  )


def resize_and_crop(
  images: UInt[Array, "b h w c"], resize: int, crop: int, interpolation: str
) -> UInt[Array, "b _ _ c"]:
  """Resizes the short side and cuts a square from the middle, as torchvision does.

  Args:
    images: any.
    resize: new length of the shorter of H and W, in pixels; 0 keeps the size.
    crop: side of the square, in pixels; 0 cuts nothing.
    interpolation: "bilinear" or "bicubic", antialiased, rounded to whole numbers.

  Returns:
    Same dtype as `images`.

  Raises:
    ValueError: the square is larger than the image.
  """
  batch, height, width, channels = images.shape
  if resize and resize != min(height, width):
    short = min(height, width)
    height, width = height * resize // short, width * resize // short
    method = {"bilinear": "linear", "bicubic": "cubic"}[interpolation]
    shape = (batch, height, width, channels)
    resized = jax.image.resize(images.astype(jnp.float32), shape, method)
    largest = np.iinfo(images.dtype).max
    images = jnp.clip(jnp.round(resized), 0, largest).astype(images.dtype)
  if crop:
    if crop > min(height, width):
      raise UserError(
        f"{setting_name('data.eval_crop')}={crop} is larger than the images, "
        f"{height}x{width}; "
        f"lower it or set {setting_name('data.eval_resize')} to more"
      )
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    images = images[:, top : top + crop, left : left + crop]
  return images


def preprocess(
  images: UInt[Array, "b h w c"],
  key: PRNGKeyArray | None = None,
  *,
  size: int = 0,
  padding: int = 0,
  flip: bool = False,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  erasing: float = 0.0,
  mean: Sequence[float],
  std: Sequence[float],
  channel_order: str = "rgb",
  own: Augment | None = None,
) -> Float32[Array, "b _ _ c"]:
  """Normalises the images; with a key, also augments them.

  Args:
    images: as stored.
    key: PRNG key of the batch in training; None in evaluation.
    size: short side in pixels to which `resize_and_crop` resizes the images before
      anything else; 0 keeps their size.
    padding: see `random_crop`.
    flip: whether to apply `random_flip`.
    brightness: strength, see `color_jitter`.
    contrast: strength, see `color_jitter`.
    saturation: strength, see `color_jitter`.
    hue: strength, see `color_jitter`.
    erasing: probability, see `random_erasing`.
    mean: see `normalize`.
    std: see `normalize`.
    channel_order: see `normalize`.
    own: (key, images) -> images, the user's augmentation, which is applied before
      the others.
  """
  images = to_grey_levels(resize_and_crop(images, size, 0, "bilinear"))
  if key is None:
    return normalize(images, mean, std, channel_order)
  crop_key, flip_key = geometry_keys(key)
  color_key, erase_key = jax.random.split(jax.random.fold_in(key, 2))
  if own is not None:
    images = own(jax.random.fold_in(key, 3), images)
  if padding:
    images = random_crop(crop_key, images, padding)
  if flip:
    images = random_flip(flip_key, images)
  if brightness or contrast or saturation or hue:
    images = color_jitter(color_key, images, brightness, contrast, saturation, hue)
  images = normalize(images, mean, std, channel_order)
  return random_erasing(erase_key, images, erasing)


def create_preprocess(config: Config, image_shape: tuple[int, int, int]) -> Preprocess:
  """Returns `preprocess` with these settings: (images, key or None) -> images.

  Raises:
    UserError: the padding is as large as the training images, or the images are smaller
      than the size to which they should be resized.
  """
  augment, own = config.augment, None
  height, width, _ = image_shape
  sizes = augment.progressive_sizes
  if sizes and sizes[-1] > min(height, width):
    raise UserError(
      f"config.augment.progressive_sizes={sizes} must be at most the short side of the "
      f"training images, {height}x{width}; lower the last size, or set "
      "config.data.image_size to it if config.data.train_crop is set"
    )
  if augment.padding >= min(height, width, *sizes):
    first = f", and than the first of config.augment.progressive_sizes={sizes}"
    raise UserError(
      f"config.augment.padding={augment.padding} must be less than the sides of the "
      f"training images, {height}x{width}{first if sizes else ''}"
    )
  if augment.batch_factory:
    own = call_factory(augment.batch_factory, "augment.batch_factory", augment)
  return partial(
    preprocess,
    padding=augment.padding,
    flip=augment.flip,
    brightness=augment.brightness,
    contrast=augment.contrast,
    saturation=augment.saturation,
    hue=augment.hue,
    erasing=augment.erasing,
    mean=config.data.mean,
    std=config.data.std,
    channel_order=config.data.channel_order,
    own=own,
  )
