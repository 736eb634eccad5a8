"""Draws boxes with texts on an image.

Letters: H height, W width, C channels, n boxes.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resnet_jax.runtime.arrays import Int, Num, UInt8
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.figure_style import OTHERS, PLAIN, RESIDUAL

# Colours for the numbers of classes, which repeat. Black is not seen on dark images.
_COLORS = RESIDUAL, PLAIN, *OTHERS[:-1]


def draw_boxes(
  image: UInt8[np.ndarray, "h w c"],
  boxes: Num[np.ndarray, "n 4"],
  classes: Int[np.ndarray, " n"],
  texts: Sequence[str],
  enlarge: int = 1,
) -> UInt8[np.ndarray, "_ _ 3"]:
  """Returns the image with boxes; each class has a colour.

  Args:
    image: grey (C is 1) or RGB.
    boxes: x0, y0, x1, y1 in pixels of the image.
    classes: number of the class of each box.
    texts: written above each box, or in it at the upper border of the image.
    enlarge: factor of the size, for small images.

  Returns:
    RGB, [H * enlarge, W * enlarge, 3].

  Raises:
    UserError: the image is neither grey nor RGB.
  """
  height, width, channels = image.shape
  if channels not in (1, 3):
    raise UserError(f"an image of {channels} channels cannot be drawn; give it 1 or 3")
  size = width * enlarge, height * enlarge
  pixels = Image.fromarray(np.broadcast_to(image, (height, width, 3)).copy())
  picture = pixels.resize(size, Image.Resampling.NEAREST)
  draw = ImageDraw.Draw(picture)
  # Legible on a thumbnail and on a photo of 20 megapixels.
  line = max(1, round(min(size) / 250))
  font = ImageFont.load_default(max(10, round(min(size) / 30)))
  for box, number, text in zip(boxes * enlarge, classes, texts, strict=True):
    color = _COLORS[number % len(_COLORS)]
    x0, y0, x1, y1 = box.tolist()
    draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), None, color, line)
    left, top, right, bottom = draw.textbbox((x0, y0), text, font, anchor="lb")
    shift = max(0, -top)  # Into the image.
    draw.rectangle((left, top + shift, right - 1, bottom + shift - 1), color)
    draw.text((x0, y0 + shift), text, "white", font, anchor="lb")
  return np.asarray(picture)
