"""RandAugment and TrivialAugment of one image at a time, on the host with Pillow.

Shapes: H height, W width, C channels. Images are uint8 in [0, 255], RGB or grey. All
randomness comes from the caller's generator and nothing is shared, so several threads
may call these functions at the same time.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.runtime.errors import UserError

LAST_BIN = 30  # torchvision has 31 strengths, from 0 to 30


Change = Callable[[Image.Image, float], Image.Image]


class Op(NamedTuple):
  """An operation and the values it takes at bins 0 and 30, linear in between.

  Attributes:
    apply: maps an RGB or grey image and a value to an image of the same size.
    rand: values at both ends in RandAugment.
    wide: values at both ends in TrivialAugment's wide space.
    signed: whether the value is negated with probability 1/2.
  """

  apply: Change
  rand: tuple[float, float] = (0, 0)
  wide: tuple[float, float] = (0, 0)
  signed: bool = False


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
  """Takes pixel (x, y) from (a x + b y + c, d x + e y + f); black if it is outside."""
  return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
  return lambda im, v: kind(im).enhance(1 + v)


def operations(width: int, height: int) -> dict[str, Op]:
  """Returns the operations of both policies for images of this size in pixels.

  Shear is a slope about the top left corner. Translation is in whole pixels to the
  right or down. Rotation is in degrees anticlockwise about the centre. These operations
  read the nearest pixel and fill with black. The enhancements blend with factor
  1 + value. The value of posterize is the number of high bits that it keeps. Solarize
  inverts pixels at or above its value; as in torchvision, bin 0 still inverts white.
  """
  slope = (0, 0.3), (0, 0.99)
  factor = (0, 0.9), (0, 0.99)
  right, down = ((0, 150 / 331 * side) for side in (width, height))
  return {
    "identity": Op(lambda im, v: im),
    "shear_x": Op(lambda im, v: _affine(im, 1, v, 0, 0, 1, 0), *slope, True),
    "shear_y": Op(lambda im, v: _affine(im, 1, 0, 0, v, 1, 0), *slope, True),
    "translate_x": Op(
      lambda im, v: _affine(im, 1, 0, -int(v), 0, 1, 0), right, (0, 32), True
    ),
    "translate_y": Op(
      lambda im, v: _affine(im, 1, 0, 0, 0, 1, -int(v)), down, (0, 32), True
    ),
    "rotate": Op(lambda im, v: im.rotate(v), (0, 30), (0, 135), True),
    "brightness": Op(_enhance(ImageEnhance.Brightness), *factor, True),
    "color": Op(_enhance(ImageEnhance.Color), *factor, True),
    "contrast": Op(_enhance(ImageEnhance.Contrast), *factor, True),
    "sharpness": Op(_enhance(ImageEnhance.Sharpness), *factor, True),
    "posterize": Op(lambda im, v: ImageOps.posterize(im, round(v)), (8, 4), (8, 2)),
    "solarize": Op(
      lambda im, v: ImageOps.solarize(im, math.ceil(v)), (255, 0), (255, 0)
    ),
    "autocontrast": Op(lambda im, v: ImageOps.autocontrast(im)),
    "equalize": Op(lambda im, v: ImageOps.equalize(im)),
  }


def _apply(
  op: Op,
  ends: tuple[float, float],
  strength: int,
  image: Image.Image,
  rng: np.random.Generator,
) -> Image.Image:
  start, stop = ends
  # Multiply before dividing, so that whole values stay exact.
  value = start + (stop - start) * strength / LAST_BIN
  return op.apply(image, -value if op.signed and rng.integers(2) else value)


def _to_pillow(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def rand_augment(
  image: np.ndarray, rng: np.random.Generator, num_ops: int = 2, magnitude: int = 9
) -> np.ndarray:
  """Applies random operations of a given strength, one after the other.

  Cubuk et al. 2019, arXiv 1909.13719, section 3.

  Args:
    image: [H, W, C] uint8, C 1 or 3; not modified.
    rng: draws the operations, with replacement, and the signs of their values.
    num_ops: number of operations, >= 0.
    magnitude: bin of the strength, from 0 to 30.

  Returns:
    [H, W, C] uint8, a new array.

  Raises:
    ValueError: `num_ops` or `magnitude` is out of range.
  """
  if num_ops < 0:
    raise UserError(f"num_ops must be >= 0, got {num_ops}")
  if not 0 <= magnitude <= LAST_BIN:
    raise UserError(f"magnitude must be from 0 to {LAST_BIN}, got {magnitude}")
  result = _to_pillow(image)
  ops = list(operations(*result.size).values())
  for i in rng.integers(len(ops), size=num_ops):
    result = _apply(ops[i], ops[i].rand, magnitude, result, rng)
  return np.array(result).reshape(image.shape)


def trivial_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Applies one random operation of random strength, from the wide space.

  Müller & Hutter 2021, arXiv 2103.10158, algorithm 1.

  Args:
    image: [H, W, C] uint8, C 1 or 3; not modified.
    rng: draws the operation, its bin from 0 to 30, and the sign of its value.

  Returns:
    [H, W, C] uint8, a new array.
  """
  result = _to_pillow(image)
  ops = list(operations(*result.size).values())
  op = ops[rng.integers(len(ops))]
  strength = int(rng.integers(LAST_BIN + 1))
  changed = _apply(op, op.wide, strength, result, rng)
  return np.array(changed).reshape(image.shape)
