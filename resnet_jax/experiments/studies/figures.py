"""The figures of a study, as PNG and SVG files."""

import functools
import operator
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_jax.experiments.studies.outcomes import Row, by_label, mean_curve, spread

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Colours that the colour-blind tell apart (Okabe and Ito 2008), and dashes for print.
_COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"
_DASHES = "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3))
_MARKERS = "o", "s", "^", "D", "v", "P", "X"

# Of each label, for each seed: what `error_curves` returns.
Curves = dict[str, list[dict[str, dict[int, float]]]]


def _style(index: int) -> dict[str, Any]:
  return {
    "color": _COLORS[index % len(_COLORS)],
    "linestyle": _DASHES[index % len(_DASHES)],
  }


def _save(figure: "Figure", out: Path, name: str) -> str:
  for suffix in ("png", "svg"):
    figure.savefig(out / f"{name}.{suffix}", dpi=120)
  return name


def _figure(
  columns: int, title: str, height: float = 4.2
) -> "tuple[Figure, list[Axes]]":
  # A figure of its own: pyplot would want a display, and keep it for ever.
  from matplotlib.figure import Figure

  width = max(7, 5.2 * columns)  # in inches
  figure = Figure(figsize=(width, height), layout="constrained")
  lines = (textwrap.fill(line, int(11 * width)) for line in title.split("\n"))
  figure.suptitle("\n".join(lines), fontsize=11)
  axes = [*figure.subplots(1, columns, squeeze=False, sharey=True)[0]]
  for one in axes:
    one.grid(alpha=0.3)
  return figure, axes


def error_curves(records: Sequence[Row]) -> dict[str, dict[int, float]]:
  """Returns error in % by the step, of "train" and "eval", from `metrics.jsonl`."""
  curves: dict[str, dict[int, float]] = {"train": {}, "eval": {}}
  for record in records:
    if record["split"] in curves:
      curves[record["split"]][record["step"]] = 100 * (1 - record["top1"])
  return curves


def draw_curves(
  out: Path, title: str, series: Mapping[str, Sequence[str]], curves: Curves
) -> str:
  """Draws training (thin) and test (bold) error over updates, as the paper's figure 6.

  Lines are means over seeds, bands from the lowest to the highest test error.

  Args:
    out: directory.
    title: of the figure.
    series: labels of each panel.
    curves: of all labels.

  Returns:
    The files' name without suffix.
  """
  figure, panels = _figure(len(series), title)
  top = 0.0
  for axes, (name, labels) in zip(panels, series.items(), strict=True):
    for i, label in enumerate(labels):
      if not curves.get(label):
        continue
      for split, width in (("train", 1.0), ("eval", 2.4)):
        runs = [curve[split] for curve in curves[label]]
        steps, mean, low, high = mean_curve(runs)
        if not steps:
          continue
        text: dict[str, Any] = {"label": label} if split == "eval" else {}
        axes.plot(steps, mean, linewidth=width, **_style(i), **text)
        if split == "eval" and len(runs) > 1:
          axes.fill_between(steps, low, high, color=_style(i)["color"], alpha=0.15)
        # The first values would press all others together.
        settled = [v for s, v in zip(steps, high, strict=True) if s >= 0.2 * steps[-1]]
        top = max([top, *settled])
    axes.set(title=name if len(panels) > 1 else "", xlabel="updates")
    axes.legend(title="bold: test, thin: training")
  panels[0].set(ylabel="error (%)", ylim=(0, min(100, 1.1 * top)))
  return _save(figure, out, "error")


def draw_depth(
  out: Path, title: str, rows: Sequence[Row], paper: Mapping[str, str]
) -> str:
  """Draws final errors over depth, with standard deviations over seeds.

  Args:
    out: directory.
    title: of the figure.
    rows: of the runs.
    paper: test errors in % by label; those that are numbers are drawn.

  Returns:
    The files' name without suffix.
  """
  figure, (axes,) = _figure(1, title)
  depths = sorted({row["depth"] for row in rows})
  for i, name in enumerate(dict.fromkeys(row["series"] for row in rows)):
    groups = by_label([row for row in rows if row["series"] == name])
    for metric, text in (("test_error", "test"), ("train_error", "training")):
      points = [
        (depths.index(group[0]["depth"]), spread([row[metric] for row in group]))
        for group in groups.values()
      ]
      is_test = metric == "test_error"
      axes.errorbar(
        [x for x, _ in points],
        [point.mean for _, point in points],
        [point.deviation if point.number > 1 else 0 for _, point in points],
        label=f"{name}, {text}",
        color=_COLORS[i],
        linewidth=2.4 if is_test else 1,
        linestyle=_DASHES[i],
        marker=_MARKERS[i],
        markerfacecolor=_COLORS[i] if is_test else "white",
        capsize=3,
      )
    known = [
      (depths.index(group[0]["depth"]), float(paper[label]))
      for label, group in groups.items()
      if re.fullmatch(r"[\d.]+", paper.get(label, ""))
    ]
    if known:
      places, errors = zip(*known, strict=True)
      axes.scatter(
        places,
        errors,
        marker="x",
        s=60,
        color=_COLORS[i],
        zorder=3,
        label=f"{name}, the paper's test",
      )
  axes.set(xlabel="layers", ylabel="error (%)", xticks=range(len(depths)))
  axes.set_xticklabels(map(str, depths))
  axes.set_ylim(bottom=0)
  axes.legend()
  return _save(figure, out, "depth")


def draw_responses(out: Path, title: str, rows: Sequence[Row]) -> str:
  """Draws each layer's response, in order and sorted, as the paper's figure 7.

  Args:
    out: directory.
    title: of the figure.
    rows: of the runs; of several seeds, means.

  Returns:
    The files' name without suffix.
  """
  figure, panels = _figure(2, title)
  responses = _mean_layers(rows, "responses")
  _plot_layers(panels[0], responses)
  _plot_layers(
    panels[1], {label: sorted(v, reverse=True) for label, v in responses.items()}
  )
  panels[0].set(title="in order", ylabel="standard deviation of the response")
  panels[1].set(title="sorted by size")
  panels[0].set_ylim(bottom=0)
  return _save(figure, out, "responses")


def draw_gradients(out: Path, title: str, rows: Sequence[Row]) -> str:
  """Draws the gradient's norm by layer, at the first, a middle and the last step.

  Arguments and result are those of `draw_responses`.
  """
  common = set.intersection(*(set(row["gradients"]) for row in rows))
  steps = sorted(common, key=int)
  shown = list(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]))
  figure, panels = _figure(len(shown), title)
  for axes, step in zip(panels, shown, strict=True):
    _plot_layers(axes, _mean_layers(rows, "gradients", step))
    when = "before the first update" if step == "0" else f"after {int(step):,} updates"
    axes.set(title=when, yscale="log")
  panels[0].set(ylabel="norm of the gradient by the kernel")
  return _save(figure, out, "gradients")


def _plot_layers(axes: "Axes", values: Mapping[str, Sequence[float]]) -> None:
  for i, (label, line) in enumerate(values.items()):
    axes.plot(range(1, len(line) + 1), line, label=label, **_style(i))
  axes.set(xlabel="layer")
  axes.locator_params(axis="x", integer=True)
  axes.legend()


def _mean_layers(rows: Sequence[Row], *keys: str) -> dict[str, list[float]]:
  """Means over seeds of what the layers of each network have below `keys`, in order."""
  means = {}
  for label, group in by_label(rows).items():
    runs = [functools.reduce(operator.getitem, keys, row) for row in group]
    means[label] = [sum(run[path] for run in runs) / len(runs) for path in runs[0]]
  return means
