"""Grids of images with captions, as PNG files."""

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_jax.runtime import figure_style
from resnet_jax.runtime.arrays import UInt, UInt8
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.terminal import printable

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Inches.
_GAP, _LINE = 0.14, 0.17
_FONT_SIZE = 8
_LONGEST = 200  # Letters; a longer text is always cut.
_BAR = "#D5E3EE"


class Picture(NamedTuple):
  """One cell of a grid.

  Attributes:
    image: [H, W, C] uint8 or uint16, see `as_rgb`.
    lines: captions below it, each on one line.
    color: colour of a frame and of the last caption; "" draws no frame.
    bars: names with fractions in [0, 1], drawn as bars below the captions.
    second: another image, drawn to the right of the first one; None draws none.
    second_title: its caption.
    bar_colors: a colour for each bar, shown as a square before its name; () has none.
  """

  image: np.ndarray
  lines: Sequence[str]
  color: str = ""
  bars: Sequence[tuple[str, float]] = ()
  second: np.ndarray | None = None
  second_title: str = ""
  bar_colors: Sequence[str] = ()


def as_rgb(
  image: UInt[np.ndarray, "h w c"],
) -> UInt8[np.ndarray, "h w 3"]:
  """Returns an image to look at: its first three channels as red, green and blue.

  Of fewer than three channels, the first is shown as grey.
  """
  shown = image[..., : 3 if image.shape[2] >= 3 else 1]
  if shown.dtype == np.uint16:
    shown = np.rint(shown / 257).astype(np.uint8)
  return np.broadcast_to(shown, (*shown.shape[:2], 3))


def draw_grid(
  path: str, pictures: Sequence[Picture], columns: int, side: float = 1.8
) -> None:
  """Writes pictures row by row.

  Args:
    path: the PNG file; it is replaced if it exists.
    pictures: at least one picture.
    columns: largest number of columns.
    side: of an image, in inches.
  """
  columns = min(columns, len(pictures))
  rows = -(-len(pictures) // columns)
  # All cells have the size of the largest.
  lines = max(len(picture.lines) for picture in pictures)
  bars = max(len(picture.bars) for picture in pictures)
  photos = 1 + any(picture.second is not None for picture in pictures)
  width = photos * (side + _GAP)
  height = side + (lines + bars) * _LINE + 1.5 * _GAP
  size = columns * width + _GAP, rows * height + _GAP
  with figure_style.styled_figure(*size) as figure, replacing(path) as part:
    for i, picture in enumerate(pictures):
      left = _GAP + i % columns * width
      top = size[1] - _GAP - i // columns * height
      _draw_cell(figure, picture, left, top, side, lines)
    figure.savefig(part, format="png")


def _draw_cell(
  figure: "Figure", picture: Picture, left: float, top: float, side: float, lines: int
) -> None:
  """Draws a picture whose upper left corner is at (left, top), in inches."""
  _draw_photo(figure, as_rgb(picture.image), left, top, side, picture.color)
  captions = [*picture.lines, *[""] * (lines - len(picture.lines))]
  baseline = top - side - 0.05
  for i, text in enumerate(captions):
    color = picture.color if i == len(picture.lines) - 1 else ""
    _write(figure, text, left, baseline - (i + 0.5) * _LINE, side, color=color)
  whole = side
  if picture.second is not None:
    place = left + side + _GAP
    whole += side + _GAP
    _draw_photo(figure, as_rgb(picture.second), place, top, side, "")
    _write(figure, picture.second_title, place, baseline - 0.5 * _LINE, side)
  baseline -= lines * _LINE
  for i, (name, fraction) in enumerate(picture.bars):
    middle = baseline - (i + 0.5) * _LINE
    color = picture.color or _BAR if i == 0 else _BAR
    _fill(figure, left, middle, whole * fraction, color, 0.3 if color != _BAR else 1)
    bold = {"fontweight": "bold"} if i == 0 else {}
    number = f"{100 * fraction:.1f} %"
    start = left + 0.04
    if picture.bar_colors:
      _fill(figure, start, middle, 0.1, picture.bar_colors[i], 1)
      start += 0.16
    _write(figure, name, start, middle, whole - 0.6, **bold)
    _write(figure, number, left + whole - 0.04, middle, 0.6, ha="right", **bold)


def _draw_photo(
  figure: "Figure", rgb: np.ndarray, left: float, top: float, side: float, color: str
) -> None:
  width, height = figure.get_size_inches()
  longest = max(rgb.shape[:2])
  rows, columns = (side * length / longest for length in rgb.shape[:2])
  axes = figure.add_axes(
    (left / width, (top - rows) / height, columns / width, rows / height)
  )
  # Interpolation would blur small images; without it, large ones would be jagged.
  smooth = "nearest" if rgb.shape[1] < 64 else "antialiased"
  axes.imshow(rgb, interpolation=smooth, extent=(0, 1, 0, 1), aspect="auto")
  axes.set(xticks=[], yticks=[])
  for spine in axes.spines.values():
    spine.set(visible=bool(color), linewidth=3, color=color or "none")


def _write(
  figure: "Figure",
  text: str,
  x: float,
  y: float,
  most: float,
  color: str = "",
  **arguments: Any,
) -> None:
  """Writes one line, at most `most` inches wide; its middle is at y, in inches."""
  width, height = figure.get_size_inches()
  figure.text(
    x / width,
    y / height,
    fit_text(text, most, arguments.get("fontweight", "normal")),
    va="center",
    fontsize=_FONT_SIZE,
    color=color or figure_style.TEXT,
    parse_math=False,
    **arguments,
  )


def _fill(
  figure: "Figure", x: float, y: float, length: float, color: str, alpha: float
) -> None:
  """Fills a bar whose middle is at y, in inches."""
  from matplotlib.patches import Rectangle

  width, height = figure.get_size_inches()
  thickness = 0.9 * _LINE
  bar = Rectangle(
    (x / width, (y - thickness / 2) / height),
    length / width,
    thickness / height,
    transform=figure.transFigure,
    color=color,
    alpha=alpha,
    linewidth=0,
  )
  figure.add_artist(bar)


def fit_text(text: str, most: float, weight: str = "normal") -> str:
  """Returns a printable line; cuts its middle if it is wider than `most` inches."""
  from matplotlib.font_manager import FontProperties
  from matplotlib.textpath import text_to_path

  text = printable(" ".join(text.split()))
  font = FontProperties(size=_FONT_SIZE, weight=weight)

  def cut(keep: int) -> str:
    return f"{text[: keep // 2]}…{text[len(text) - (keep + 1) // 2 :]}"

  def measure(shown: str) -> float:
    points, *_ = text_to_path.get_text_width_height_descent(shown, font, ismath=False)
    return float(points) / 72

  if len(text) <= _LONGEST and measure(text) <= most:
    return text
  lengths = range(min(len(text), _LONGEST))
  fitting = bisect.bisect_right(lengths, most, key=lambda keep: measure(cut(keep)))
  return cut(max(0, fitting - 1))
