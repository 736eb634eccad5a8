"""Learning curves of a run: loss and error over epochs."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from resnet_jax.runtime import figure_style

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_STYLES = {
  "train": ("training", figure_style.TRAINING, figure_style.THIN),
  "eval": ("evaluation", figure_style.EVALUATION, figure_style.BOLD),
  "ema": ("evaluation of the average", figure_style.EMA, figure_style.BOLD),
}
_MOST_MARKERS = 30
# Below this fraction of the highest value, a curve looks flat on a linear axis.
_LOG_BELOW = 0.1


def draw_curves(
  records: Sequence[dict[str, Any]], path: epath.Path, **arguments: Any
) -> None:
  """Draws a run into a PNG file; draws nothing if there is nothing to show yet.

  Args:
    records: lines of `metrics.jsonl`.
    path: the PNG file, which is written completely or not at all.
    **arguments: further arguments of `plot_curves`.
  """
  if not records:
    return
  new = path.with_name(path.name + ".new")
  with figure_style.styled_figure(6.4, 6.2) as figure, new.open("wb") as file:
    plot_curves(figure, records, **arguments)
    figure.savefig(file, format="png")
  new.replace(path)


def plot_curves(
  figure: "Figure",
  records: Sequence[dict[str, Any]],
  title: str = "",
  best_metric: str = "top1",
  decays: Sequence[float] = (),
  smoothed: bool = False,
  distilled: bool = False,
) -> None:
  """Draws training (thin) and evaluation (bold) curves, like the paper's figures.

  Args:
    figure: an empty figure.
    records: at least one line of `metrics.jsonl`; "epoch", "step", "split", "loss" and
      the best metric are used.
    title: title, such as the network and the data.
    best_metric: the metric that chooses the best checkpoint; more is better.
    decays: epochs at which the learning rate drops.
    smoothed: whether the training loss uses label smoothing.
    distilled: whether the training loss includes a teacher.
  """
  series: dict[str, list[dict[str, Any]]] = {
    split: [record for record in records if record["split"] == split]
    for split in _STYLES
  }
  has_metric = any(best_metric in record for record in records)
  panels = figure.subplots(1 + has_metric, 1, sharex=True, squeeze=False)[:, 0]
  _plot(panels[0], series, "loss", "loss")
  if has_metric:
    name = "top-1 error (%)" if best_metric == "top1" else best_metric
    _plot(panels[1], series, best_metric, name)
  panels[-1].set(xlabel="epoch")
  panels[-1].set_xlim(left=0)
  last = max(record["epoch"] for record in records)
  drops = [epoch for epoch in decays if epoch <= last]
  for axes in panels:
    for epoch in drops:
      axes.axvline(epoch, color=figure_style.FAINT_TEXT, lw=0.8, ls=":")

  lines = [title]
  evaluated = [
    record for record in series["ema"] or series["eval"] if best_metric in record
  ]
  if evaluated:
    # Ties go to the newest, as for checkpoints.
    best = max(evaluated, key=lambda record: (record[best_metric], record["step"]))
    value = best[best_metric]
    number = f"{best_metric} {value:.4g}"
    if best_metric == "top1":
      number = f"top-1 {100 * value:.2f} %"
    lines.append(f"best evaluation: {number} at step {best['step']:,} (circle)")
    place = best["epoch"], _shown(value, best_metric)
    circle = {"ms": 9, "mfc": "none", "mec": figure_style.TEXT, "zorder": 3}
    panels[1].plot(*place, "o", clip_on=False, **circle)
  # Fixed margins: fitting them to the labels would take longer than drawing.
  figure.subplots_adjust(left=0.11, right=0.97, bottom=0.15, top=0.86, hspace=0.1)
  figure.text(
    0.02,
    0.98,
    "\n".join(lines),
    va="top",
    fontsize=10,
    linespacing=1.5,
    parse_math=False,
  )
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="lower right", bbox_to_anchor=(0.98, 0.86), ncols=3
  )
  figure.text(
    0.02,
    0.015,
    _note(smoothed, distilled, bool(drops)),
    fontsize=7.5,
    color=figure_style.FAINT_TEXT,
    linespacing=1.3,
  )


def _plot(
  axes: "Axes", series: dict[str, list[dict[str, Any]]], metric: str, name: str
) -> None:
  """Plots one metric of all splits."""
  shown: list[float] = []
  for split, (label, color, width) in _STYLES.items():
    rows = [row for row in series[split] if metric in row]
    if not rows:
      continue
    values = [_shown(row[metric], metric) for row in rows]
    marker = "o" if len(rows) <= _MOST_MARKERS else None
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, values, color=color, lw=width, label=label, marker=marker, ms=3)
    shown += values
  axes.set(ylabel=name)
  positive = [value for value in shown if value > 0]
  if min(shown) >= 0 and positive and min(positive) < _LOG_BELOW * max(shown):
    _make_logarithmic(axes, 0.8 * min(positive))
  elif min(shown) >= 0:
    axes.set_ylim(bottom=0)


def _make_logarithmic(axes: "Axes", bottom: float) -> None:
  from matplotlib import ticker

  axes.set_yscale("log")
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
  axes.yaxis.set_minor_locator(ticker.NullLocator())
  axes.set_ylim(bottom=bottom)


def _shown(value: float, metric: str) -> float:
  return 100 * (1 - value) if metric == "top1" else value


def _note(smoothed: bool, distilled: bool, drops: bool) -> str:
  labels = " with smoothed labels" if smoothed else ""
  note = (
    "The training line shows means over the steps between two logs, on augmented "
    f"images{labels}, so it can lie above the evaluation."
  )
  if distilled:
    note += " The training loss includes the teacher."
  if drops:
    note += " Dotted lines mark where the learning rate drops."
  return textwrap.fill(note, 104)
