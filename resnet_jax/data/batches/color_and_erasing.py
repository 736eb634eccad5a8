"""On-device colour jitter and random erasing: functions of (key, images).

Shapes: B batch, H height, W width, C channels.
"""

import math

import jax
import jax.numpy as jnp

from resnet_jax.runtime.arrays import (
  AnyArray,
  Array,
  Bool,
  Float32,
  Int,
  Num,
  PRNGKeyArray,
  prepend_axes,
)


def _blend(
  images: Float32[Array, "b h w c"],
  other: Array | float,
  factor: Float32[Array, "b 1 1 1"],
) -> Float32[Array, "b h w c"]:
  """Blends `other` (factor 0) with the images (factor 1) and clips to [0, 255]."""
  return jnp.clip(factor * images + (1 - factor) * other, 0, 255)


def _grey(images: Float32[Array, "b h w c"]) -> Float32[Array, "b h w 1"]:
  """Returns the luma of RGB (ITU-R BT.601, like PIL's mode L), or else the mean."""
  if images.shape[-1] != 3:
    return jnp.mean(images, axis=-1, keepdims=True)
  # Not a matrix product, because accelerators would round its factors.
  luma = prepend_axes(jnp.array([0.299, 0.587, 0.114], jnp.float32), images)
  return jnp.sum(images * luma, axis=-1, keepdims=True)


def _adjust_brightness(images: Array, factor: Array) -> Array:
  return _blend(images, 0.0, factor)


def _adjust_contrast(images: Array, factor: Array) -> Array:
  mean = jnp.mean(_grey(images), axis=(1, 2), keepdims=True)
  return _blend(images, mean, factor)


def _adjust_saturation(images: Array, factor: Array) -> Array:
  return _blend(images, _grey(images), factor)


def _shift_hue(
  images: Float32[Array, "b h w 3"], turns: Float32[Array, "b 1 1 1"]
) -> Float32[Array, "b h w 3"]:
  """Rotates the HSV hue. Value, saturation and the range [0, 255] do not change."""
  red, green, blue = jnp.split(images, 3, axis=-1)
  value = jnp.max(images, axis=-1, keepdims=True)
  chroma = value - jnp.min(images, axis=-1, keepdims=True)
  divisor = jnp.where(chroma == 0, 1, chroma)  # grey has no hue; any will do
  # The channels are compared with each other and not with `value`, because a compiler
  # may compute them twice and round differently. If two channels are almost equal, both
  # branches give the same colour.
  hue = jnp.where(  # in sixths of a turn
    red >= jnp.maximum(green, blue),
    (green - blue) / divisor,
    jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
  )
  # On one third of the colour circle a channel is `value`, on the opposite third it is
  # `value - chroma`, and in between it changes linearly.
  offsets = prepend_axes(jnp.array([5, 3, 1]), hue)
  position = (offsets + hue + 6 * turns) % 6
  return value - chroma * jnp.clip(jnp.minimum(position, 4 - position), 0, 1)


def color_jitter(
  key: PRNGKeyArray,
  images: Num[AnyArray, "b h w c"],
  brightness: float,
  contrast: float,
  saturation: float,
  hue: float = 0.0,
) -> Float32[Array, "b h w c"]:
  """Changes the colours of each image at random, as torchvision's ColorJitter does.

  The changes follow the order of the arguments; torchvision draws a random order. A
  strength s gives a factor that is uniform in [max(0, 1 - s), 1 + s]. It blends the
  image with black (brightness), with the mean of its grey version (contrast) or with
  its grey version (saturation). Each result is clipped to [0, 255]. Strength 0 changes
  nothing. The grey version is the mean of the channels if there are not three of them.
  Saturation and hue then have no meaning.

  Args:
    key: the same key always gives the same colours.
    images: in [0, 255].
    brightness: strength, >= 0.
    contrast: strength, >= 0.
    saturation: strength, >= 0.
    hue: largest shift of the hue in turns of the colour circle, in [0, 0.5]. The shift
      is uniform in [-hue, hue].

  Returns:
    In [0, 255], not rounded.
  """
  images = jnp.asarray(images, jnp.float32)
  *keys, hue_key = jax.random.split(key, 4)
  shape = (images.shape[0], 1, 1, 1)
  for op_key, strength, adjust in zip(
    keys,
    (brightness, contrast, saturation),
    (_adjust_brightness, _adjust_contrast, _adjust_saturation),
    strict=True,
  ):
    if strength:
      low, high = max(0.0, 1 - strength), 1 + strength
      images = adjust(
        images, jax.random.uniform(op_key, shape, minval=low, maxval=high)
      )
  if hue:
    turns = jax.random.uniform(hue_key, shape, minval=-hue, maxval=hue)
    images = _shift_hue(images, turns)
  return images


def box_mask(
  top: Int[Array, "*b"],
  bottom: Int[Array, "*b"],
  left: Int[Array, "*b"],
  right: Int[Array, "*b"],
  image_shape: tuple[int, ...],
) -> Bool[Array, "... {image_shape[0]} {image_shape[1]} 1"]:
  """Returns the mask of the pixels in a box; sides [B, 1, 1, 1] give B masks."""
  rows = prepend_axes(jnp.arange(image_shape[0])[:, None, None], top)
  columns = prepend_axes(jnp.arange(image_shape[1])[None, :, None], top)
  return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def random_erasing(
  key: PRNGKeyArray,
  images: Num[Array, "b h w c"],
  probability: float,
  scale: tuple[float, float] = (0.02, 0.33),
  ratio: tuple[float, float] = (0.3, 3.3),
) -> Num[Array, "b h w c"]:
  """Sets a random rectangle of some images to 0 (Zhong et al. 2017, algorithm 1).

  It works like torchvision's RandomErasing, except for a rectangle that does not fit.
  Here it is cut to the height or width of the image; torchvision draws again up to 10
  times.

  Args:
    key: the same key always gives the same rectangles.
    images: normalised, so that 0 is the mean.
    probability: probability that an image loses a rectangle, in [0, 1]; 0 changes
      nothing.
    scale: smallest and largest area, as a fraction of the image; drawn uniformly.
    ratio: smallest and largest height / width; its logarithm is drawn uniformly.

  Returns:
    Same dtype as `images`.
  """
  if not probability:
    return images
  batch, height, width, _ = images.shape
  shape = (batch, 1, 1, 1)
  erase_key, area_key, ratio_key, top_key, left_key = jax.random.split(key, 5)
  erase = jax.random.bernoulli(erase_key, probability, shape)
  area = jax.random.uniform(area_key, shape, minval=scale[0], maxval=scale[1])
  log_ratio = jax.random.uniform(
    ratio_key, shape, minval=math.log(ratio[0]), maxval=math.log(ratio[1])
  )
  side, stretch = jnp.sqrt(area * height * width), jnp.exp(log_ratio / 2)
  rows = jnp.minimum(jnp.round(side * stretch).astype(jnp.int32), height)
  columns = jnp.minimum(jnp.round(side / stretch).astype(jnp.int32), width)
  top = jax.random.randint(top_key, shape, 0, height - rows + 1)
  left = jax.random.randint(left_key, shape, 0, width - columns + 1)
  box = box_mask(top, top + rows, left, left + columns, images.shape[1:])
  return jnp.where(erase & box, 0, images)
