"""The look of all figures: what each colour and each line style means, and the fonts.

All colours are from Okabe and Ito (2008); colour-blind people can distinguish them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from matplotlib.figure import Figure

  LineStyle = str | tuple[int, tuple[int, ...]]

# Kinds of network. These two colours have no other meaning in any figure.
PLAIN = "#D55E00"
RESIDUAL = "#0072B2"

# Kinds of measurement, in figures of a single network.
TRAINING = "#8C8C8C"
EVALUATION = "#009E73"
EMA = "#CC79A7"

# Whether a prediction is right, or a neighbour has the class of the query. A text says
# it too, as some people cannot distinguish red and green.
RIGHT = "#007A5A"
WRONG = "#C0392B"

# Colours without a fixed meaning, for example for further networks in a figure.
OTHERS = "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"

TEXT = "#222222"
FAINT_TEXT = "#666666"
GRID = "#E3E3E3"

# Line widths in points, as in the paper's figures: bold evaluation, thin training.
BOLD, THIN = 2.2, 1.0

DPI = 120

_LINE_STYLES: "tuple[LineStyle, ...]" = (
  "-",
  (0, (5, 2)),
  (0, (1, 1)),
  (0, (6, 2, 1, 2)),
  (0, (9, 3)),
  (0, (1, 3)),
)

_SETTINGS: dict[Any, Any] = {
  "font.family": "DejaVu Sans",  # Part of matplotlib.
  "font.size": 9,
  "axes.titlesize": 10,
  "axes.titlelocation": "left",
  "axes.labelsize": 9,
  "figure.titlesize": 11,
  "figure.facecolor": "white",
  "savefig.facecolor": "white",
  "savefig.dpi": DPI,
  "axes.facecolor": "white",
  "axes.edgecolor": "#AAAAAA",
  "axes.labelcolor": TEXT,
  "axes.titlecolor": TEXT,
  "text.color": TEXT,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": GRID,
  "grid.linewidth": 0.8,
  "xtick.color": "#AAAAAA",
  "xtick.labelcolor": TEXT,
  "ytick.color": "#AAAAAA",
  "ytick.labelcolor": TEXT,
  "legend.frameon": False,
  "legend.fontsize": 8,
}


def kind_color(residual: bool) -> str:
  """Returns the colour of residual or plain networks."""
  return RESIDUAL if residual else PLAIN


def depth_styles(depths: Sequence[int]) -> "dict[int, LineStyle]":
  """Returns a line style for each depth: the deepest network has the solid line."""
  deepest_first = sorted(set(depths), reverse=True)
  return {
    depth: _LINE_STYLES[i % len(_LINE_STYLES)] for i, depth in enumerate(deepest_first)
  }


@contextlib.contextmanager
def styled_figure(width: float, height: float, **arguments: Any) -> "Iterator[Figure]":
  """Opens a figure; draw and save it inside the context, where the style is set.

  A text that contains a user's name for something needs `parse_math=False`: the name
  may contain a $.

  Args:
    width: in inches.
    height: in inches.
    **arguments: other arguments of `matplotlib.figure.Figure`.
  """
  # The import takes a fraction of a second, and most commands draw nothing.
  import matplotlib

  # pyplot would need a display, and would never free a figure.
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_SETTINGS):
    yield Figure(figsize=(width, height), **arguments)
