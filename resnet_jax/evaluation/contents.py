"""What the report of a task consists of, before it is drawn and written."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.runtime.tables import Table


class Chart(NamedTuple):
  """A chart of a report.

  Attributes:
    name: of its file, without the suffix.
    title: its heading.
    text: what it shows.
    draw: writes it into a PNG file; None if there is nothing to draw.
  """

  name: str
  title: str
  text: str
  draw: Callable[[Path], None] | None


class Grid(NamedTuple):
  """Images of a report that are worth a look; see `Chart`.

  Attributes:
    rows: rows of the answers, the most interesting first.
  """

  name: str
  title: str
  text: str
  rows: Sequence[int] | np.ndarray


class Caption(NamedTuple):
  """What is written below an image; see `image_grid.Picture`."""

  lines: Sequence[str]
  color: str
  bars: Sequence[tuple[str, float]] = ()
  bar_colors: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a report shows.

  Attributes:
    labels: what the images are labelled with, such as "10 classes".
    scores: a part of `scores.TEXTS`, and "count".
    intervals: of some scores.
    tables: name of a .csv file, without the suffix, -> its rows, the header first.
    charts: in the order of the page.
    grids: after the charts.
    caption: row of the answers -> what is written below its image.
    images: row -> the image and a second one, drawn to its right. If None, the report
      reads the image from the source.
  """

  labels: str
  scores: Mapping[str, float]
  intervals: Mapping[str, tuple[float, float]]
  tables: Mapping[str, Table]
  charts: Sequence[Chart]
  grids: Sequence[Grid]
  caption: Callable[[int], Caption]
  images: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None
