"""Grids of images with what is said of each, as PNG files."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.terminal import printable

_WIDTH = 26  # Letters of a caption's line.


class Picture(NamedTuple):
  """One cell of a grid.

  Attributes:
    image: [H, W, 3] or [H, W, 1] uint8.
    lines: said below it.
    heat: [h, w] >= 0, laid over it; None is nothing.
    framed: drawn with a frame, to stand out.
  """

  image: np.ndarray
  lines: Sequence[str]
  heat: np.ndarray | None = None
  framed: bool = False


def draw_grid(path: str, pictures: Sequence[Picture], columns: int) -> None:
  """Writes pictures row by row.

  Args:
    path: of the PNG file; replaced if it is there.
    pictures: at least one.
    columns: of the grid, at most.
  """
  # A figure of its own: pyplot would want a display, and keep it for ever.
  from matplotlib.figure import Figure

  columns = min(columns, len(pictures))
  rows = -(-len(pictures) // columns)
  captions = [_wrap(picture.lines) for picture in pictures]
  text = 0.17 * max(caption.count("\n") + 1 for caption in captions) + 0.15
  side, gap = 1.8, 0.12  # Inches, as all here.
  size = columns * (side + gap) + gap, rows * (side + text) + gap
  figure = Figure(figsize=size)
  for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
    left = gap + i % columns * (side + gap)
    bottom = size[1] - gap - (i // columns + 1) * side - i // columns * text
    axes = figure.add_axes(
      (left / size[0], bottom / size[1], side / size[0], side / size[1])
    )
    height, width = picture.image.shape[:2]
    extent = (0, width, height, 0)
    rgb = np.broadcast_to(picture.image, (height, width, 3))
    # Small images would be a blur, and large ones jagged.
    smooth = "nearest" if width < 64 else "antialiased"
    axes.imshow(rgb, extent=extent, interpolation=smooth)
    if picture.heat is not None:
      heat = picture.heat / max(picture.heat.max(), 1e-12)
      axes.imshow(
        heat, "inferno", extent=extent, interpolation="bilinear", alpha=0.55, vmin=0
      )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
      spine.set(visible=picture.framed, linewidth=3, color="#0072B2")
    axes.set_title(
      caption,
      y=0,
      pad=-4,
      va="top",
      fontsize=8,
      linespacing=1.15,
      parse_math=False,  # A name may hold a $.
    )
  with replacing(path) as part:
    figure.savefig(part, format="png", dpi=120)


def _wrap(lines: Sequence[str]) -> str:
  shown = (printable(" ".join(line.split())) for line in lines)
  short = (textwrap.shorten(line, 2 * _WIDTH, placeholder="…") for line in shown)
  return "\n".join(textwrap.fill(line, _WIDTH) for line in short)
