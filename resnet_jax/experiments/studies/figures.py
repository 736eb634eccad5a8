"""The figures of a study, as PNG and SVG files."""

import contextlib
import functools
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resnet_jax.experiments.studies.outcomes import Row, by_label, mean_curve, spread
from resnet_jax.experiments.studies.study import Variant
from resnet_jax.runtime.figure_style import (
  BOLD,
  OTHERS,
  TEXT,
  THIN,
  depth_styles,
  kind_color,
  styled_figure,
)

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

WIDTH = 7.5  # Inches: the width of a page, so that all text is legible.

# The result of `error_curves` for each seed, by label.
Curves = dict[str, list[dict[str, dict[int, float]]]]
# The colour and the line style of a network.
Look = dict[str, Any]


class Drawn(NamedTuple):
  """A figure that was drawn.

  Attributes:
    name: name of the files, without suffix.
    title: a few words.
    caption: whole sentences that explain what is drawn.
  """

  name: str
  title: str
  caption: str


def looks(variants: Iterable[Variant]) -> dict[str, Look]:
  """Returns the colour and line style of each network, by label.

  The colour shows the kind, plain or residual; the line style shows the depth. If
  several networks have the same kind and depth, only the first has the colour of the
  kind, so that each network looks different.
  """
  by_name = {variant.label: variant for variant in variants}
  styles = depth_styles([variant.depth for variant in by_name.values()])
  others, seen = itertools.cycle(OTHERS), set()
  found = {}
  for label, variant in by_name.items():
    key = variant.kind, variant.depth
    if variant.kind in ("plain", "resnet") and key not in seen:
      color = kind_color(residual=variant.kind == "resnet")
    else:
      color = next(others)
    seen.add(key)
    found[label] = {"color": color, "linestyle": styles[variant.depth]}
  return found


@contextlib.contextmanager
def _panels(
  out: Path, name: str, columns: int, height: float
) -> "Iterator[tuple[Figure, list[Axes]]]":
  """Opens a figure with panels side by side; it is saved at the end."""
  with styled_figure(WIDTH, height, layout="constrained") as figure:
    yield figure, [*figure.subplots(1, columns, squeeze=False, sharey=True)[0]]
    for suffix in ("png", "svg"):
      figure.savefig(out / f"{name}.{suffix}")


def _legend(figure: "Figure", handles: "Sequence[Artist]") -> None:
  """Draws the one legend of a figure, below its panels."""
  figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def _line(label: str, **look: Any) -> "Artist":
  """Returns a line, or a marker, for the legend."""
  from matplotlib.lines import Line2D

  return Line2D([], [], label=label, **{"color": TEXT} | look)


def error_curves(records: Sequence[Row]) -> dict[str, dict[int, float]]:
  """Returns "train" and "eval" error in % by step, from lines of `metrics.jsonl`."""
  curves: dict[str, dict[int, float]] = {"train": {}, "eval": {}}
  for record in records:
    if record["split"] in curves:
      curves[record["split"]][record["step"]] = 100 * (1 - record["top1"])
  return curves


def draw_curves(out: Path, variants: Sequence[Variant], curves: Curves) -> Drawn:
  """Draws training (thin) and test (bold) error over updates, as in figure 6.

  Args:
    out: directory.
    variants: networks of the study.
    curves: the error curves of the trained networks.
  """
  from matplotlib.patches import Patch

  look = looks(variants)
  series: dict[str, list[str]] = {}
  for variant in variants:
    labels = series.setdefault(variant.series, [])
    if variant.label in curves and variant.label not in labels:
      labels.append(variant.label)
  series = {name: labels for name, labels in series.items() if labels}
  top, has_band = 0.0, False
  with _panels(out, "error", len(series), 4) as (figure, panels):
    for axes, (name, labels) in zip(panels, series.items(), strict=True):
      for label in labels:
        for split, width in (("train", THIN), ("eval", BOLD)):
          runs = [curve[split] for curve in curves[label]]
          steps, mean, low, high = mean_curve(runs)
          if not steps:
            continue
          axes.plot(steps, mean, linewidth=width, **look[label])
          if split == "eval" and len(runs) > 1:
            axes.fill_between(steps, low, high, color=look[label]["color"], alpha=0.15)
            has_band = True
          # The first values are so high that they would flatten all others.
          settled = itertools.compress(high, (s >= 0.2 * steps[-1] for s in steps))
          top = max(top, *settled)
      axes.set(title=name if len(panels) > 1 else "", xlabel="updates")
      axes.locator_params(axis="x", nbins=6)
      axes.xaxis.set_major_formatter("{x:,.0f}")
    panels[0].set(ylabel="error (%)", ylim=(0, min(100, 1.1 * top)))
    handles = [
      _line(label, linewidth=BOLD, **look[label])
      for labels in series.values()
      for label in labels
    ]
    handles += [
      _line("test error", linewidth=BOLD),
      _line("training error", linewidth=THIN),
    ]
    if has_band:
      handles.append(
        Patch(color=TEXT, alpha=0.15, linewidth=0, label="range over seeds")
      )
    _legend(figure, handles)
  caption = "Bold lines are test errors, thin lines are training errors."
  if has_band:
    caption += (
      " Each line is the mean over the seeds. The shaded area reaches from the lowest "
      "to the highest test error of the seeds."
    )
  return Drawn("error", "Error during training", caption)


def draw_depth(
  out: Path, variants: Sequence[Variant], rows: Sequence[Row], paper: Mapping[str, str]
) -> Drawn:
  """Draws final errors over depth, with standard deviations over seeds.

  With three or more depths, a line joins the points.

  Args:
    out: directory.
    variants: networks of the study.
    rows: results of the runs.
    paper: test errors in % by label; only the numbers among them are drawn.
  """
  look = looks(variants)
  depths = sorted({row["depth"] for row in rows})
  names = list(dict.fromkeys(row["series"] for row in rows))
  has_paper = has_bars = False
  with _panels(out, "depth", 1, 3.8) as (figure, (axes,)):
    handles = []
    for i, name in enumerate(names):
      groups = by_label([row for row in rows if row["series"] == name])
      color = look[next(iter(groups))]["color"]
      handles.append(_line(name, color=color, linewidth=6))
      shift = 0.12 * (i - (len(names) - 1) / 2)  # So that no series hides another.
      places = [depths.index(group[0]["depth"]) + shift for group in groups.values()]
      for metric in ("test_error", "train_error"):
        points = [spread([row[metric] for row in group]) for group in groups.values()]
        has_bars = has_bars or any(point.number > 1 for point in points)
        is_test = metric == "test_error"
        axes.errorbar(
          places,
          [point.mean for point in points],
          [point.deviation if point.number > 1 else 0 for point in points],
          color=color,
          linestyle="-" if len(depths) > 2 else "none",
          linewidth=BOLD if is_test else THIN,
          elinewidth=THIN,
          capsize=3,
          marker="o",
          markersize=7,
          markerfacecolor=color if is_test else "white",
        )
      known = [
        (place, float(paper[label]))
        for place, label in zip(places, groups, strict=True)
        if re.fullmatch(r"[\d.]+", paper.get(label, ""))
      ]
      if known:
        axes.plot(*zip(*known, strict=True), "x", color=color, markersize=8, zorder=3)
        has_paper = True
    axes.set(xlabel="layers", ylabel="error (%)", xlim=(-0.5, len(depths) - 0.5))
    axes.set_xticks(range(len(depths)), [f"{depth:,}" for depth in depths])
    axes.set_ylim(bottom=0)
    dot = {"marker": "o", "linestyle": "none"}
    handles += [
      _line("test error", **dot),
      _line("training error", markerfacecolor="white", **dot),
    ]
    if has_paper:
      handles.append(_line("paper's test error", marker="x", linestyle="none"))
    _legend(figure, handles)
  caption = "Filled circles are test errors, empty circles are training errors."
  if has_bars:
    caption += " The bars are one standard deviation over the seeds in each direction."
  if has_paper:
    caption += " Crosses are the paper's test errors, after its whole schedule."
  return Drawn("depth", "Final error by depth", caption)


def draw_responses(
  out: Path, variants: Sequence[Variant], rows: Sequence[Row]
) -> Drawn:
  """Draws the response of each layer, in order and sorted, as in the paper's figure 7.

  Args:
    out: directory.
    variants: networks of the study.
    rows: results of the runs; lines are means over seeds.
  """
  responses = _mean_layers(rows, "responses")
  ordered = {label: sorted(v, reverse=True) for label, v in responses.items()}
  with _panels(out, "responses", 2, 3.6) as (figure, panels):
    _plot_layers(panels[0], responses, looks(variants))
    handles = _plot_layers(panels[1], ordered, looks(variants))
    panels[0].set(title="in order", ylabel="standard deviation of the response")
    panels[1].set(title="sorted by size")
    panels[0].set_ylim(bottom=0)
    _legend(figure, handles)
  caption = (
    "The response of a layer is the output of its batch norm, before ReLU and before "
    "the shortcut is added. On the left the layers are in the order of the network, on "
    "the right the same values are sorted."
  )
  return Drawn("responses", "Response of each layer", caption)


def draw_gradients(
  out: Path, variants: Sequence[Variant], rows: Sequence[Row]
) -> Drawn:
  """Draws the gradient's norm by layer, at the first, a middle and the last step.

  Arguments and result are those of `draw_responses`.
  """
  common = set.intersection(*(set(row["gradients"]) for row in rows))
  steps = sorted(common, key=int)
  shown = list(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]))
  with _panels(out, "gradients", len(shown), 3.6) as (figure, panels):
    for axes, step in zip(panels, shown, strict=True):
      layers = _mean_layers(rows, "gradients", step)
      handles = _plot_layers(axes, layers, looks(variants))
      when = "before training" if step == "0" else f"after {int(step):,} updates"
      axes.set(title=when, yscale="log")
    panels[0].set(ylabel="norm of the gradient")
    _legend(figure, handles)
  caption = (
    "Norm of the gradient of the loss with respect to the kernel of each convolution, "
    "on a logarithmic axis. Layer 1 is next to the image."
  )
  return Drawn("gradients", "Gradient of each layer", caption)


def _plot_layers(
  axes: "Axes", values: Mapping[str, Sequence[float]], look: Mapping[str, Look]
) -> "list[Artist]":
  lines: list[Artist] = []
  for label, line in values.items():
    lines += axes.plot(range(1, len(line) + 1), line, label=label, **look[label])
  axes.set(xlabel="layer")
  axes.locator_params(axis="x", integer=True)
  return lines


def _mean_layers(rows: Sequence[Row], *keys: str) -> dict[str, list[float]]:
  """Returns the values at `keys` by network: for each layer, the mean over seeds."""
  means = {}
  for label, group in by_label(rows).items():
    runs = [functools.reduce(operator.getitem, keys, row) for row in group]
    means[label] = [sum(run[path] for run in runs) / len(runs) for path in runs[0]]
  return means
