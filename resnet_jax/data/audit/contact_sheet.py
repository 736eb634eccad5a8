"""A picture with some images of some classes."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resnet_jax.data.audit.splits import Images
from resnet_jax.data.images.crops import resize_exactly, resized_box
from resnet_jax.data.images.decode import open_image, read_stored, upright_size
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.terminal import printable

_SIDE, _GAP, _COLUMNS, _ROWS = 96, 4, 8, 10


def draw_contact_sheet(
  source: Images, facts: np.ndarray, path: str, max_pixels: int
) -> None:
  """Writes a contact sheet with some classes, one row of square images per class."""
  rng = np.random.default_rng(0)
  good = facts["format"] != b""
  labels = np.sort(rng.permutation(np.unique(facts["label"][good]))[:_ROWS])
  counts = np.bincount(facts["label"][facts["label"] >= 0])
  texts = []
  for label in labels.tolist():
    name = printable(source.class_names[label])
    lines = textwrap.wrap(name, 20, max_lines=4)
    count = int(counts[label])
    texts.append("\n".join([*lines, f"{count:,} image{'s' * (count != 1)}"]))
  font = ImageFont.load_default(14)
  ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
  widths = [ruler.multiline_textbbox((0, 0), text, font)[2] for text in texts]
  left, step = int(max(widths)) + 4 * _GAP, _SIDE + _GAP
  sheet = Image.new("RGB", (left + _COLUMNS * step, _GAP + len(labels) * step), "white")
  draw = ImageDraw.Draw(sheet)
  for row, (label, text) in enumerate(zip(labels, texts, strict=True)):
    top = _GAP + row * step
    middle = (2 * _GAP, top + _SIDE / 2)
    draw.multiline_text(middle, text, "black", font, anchor="lm")
    chosen = rng.permutation(np.flatnonzero(good & (facts["label"] == label)))
    for column, i in enumerate(chosen[:_COLUMNS].tolist()):
      image = Image.fromarray(_square(source[i][0], max_pixels))
      sheet.paste(image, (left + column * step, top))
  with replacing(path) as part:
    sheet.save(part, "png")


def _square(data: bytes, max_pixels: int) -> np.ndarray:
  """Returns the middle of an image, [S, S, 3] uint8, whatever it stores.

  Values that are not 8-bit are stretched, so that the highest one is white. The first
  three channels are shown in colour; of two channels, the first is shown as grey.
  """
  head = open_image(data, max_pixels)
  values = read_stored(data, head).colors
  values = values[..., : 3 if values.shape[2] >= 3 else 1]
  if values.dtype != np.uint8:
    white = float(values.max()) or 1.0
    values = np.nan_to_num(values * (255 / white)).clip(0, 255).astype(np.uint8)
  rgb = np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
  box = resized_box(*upright_size(head), _SIDE, _SIDE)
  return resize_exactly(rgb, box, _SIDE, "bilinear")
