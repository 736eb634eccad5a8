"""The pictures of a report, as PNG files."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.evaluation.answers import Answers
from resnet_jax.evaluation.contents import Chart
from resnet_jax.evaluation.scores import Counts, calibration
from resnet_jax.inference.image_grid import fit_text
from resnet_jax.runtime import figure_style
from resnet_jax.runtime.atomic_files import replacing

MOST_CELLS = 30  # Classes of a matrix that one can read.
MOST_ROWS = 30  # Bars of a chart.
_MOST_PANELS = 9
_NAME_WIDTH = 1.6  # Inches.


def confused_pairs(answers: Answers) -> list[tuple[int, int, int]]:
  """Returns (label, prediction, number of images) of all mistakes, most first."""
  count = answers.logits.shape[1]
  pairs = answers.labels.astype(np.int64) * count + answers.predictions
  found, counts = np.unique(pairs, return_counts=True)
  wrong = found // count != found % count
  order = np.lexsort((found[wrong], -counts[wrong]))
  return [
    (int(pair // count), int(pair % count), int(times))
    for pair, times in zip(found[wrong][order], counts[wrong][order], strict=True)
  ]


def draw_confusion(path: Path, answers: Answers) -> None:
  """Draws the confusion matrix, or the most confused pairs of many classes."""
  names = answers.class_names
  if len(names) > MOST_CELLS:
    pairs = confused_pairs(answers)[:MOST_ROWS]
    labels = [f"{names[label]} → {names[found]}" for label, found, _ in pairs]
    values = [times for *_, times in pairs]
    _draw_bars(path, labels, [("images", values, figure_style.WRONG)], 2.8)
    return
  count = len(names)
  matrix = np.zeros((count, count), int)
  np.add.at(matrix, (answers.labels, answers.predictions), 1)
  shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
  side = max(3.0, 0.36 * count)
  size = side + _NAME_WIDTH + 0.4, side + _NAME_WIDTH + 0.4
  with figure_style.styled_figure(*size, layout="constrained") as figure:
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    shown = [fit_text(name, _NAME_WIDTH) for name in names]
    axes.set_xticks(range(count), shown, rotation=90, parse_math=False)
    axes.set_yticks(range(count), shown, parse_math=False)
    axes.set(xlabel="prediction", ylabel="label")
    for (row, column), times in np.ndenumerate(matrix):
      if times:
        dark = shares[row, column] > 0.5
        color = "white" if dark else figure_style.TEXT
        size_of_text = 7 if times < 1000 else 5.5
        axes.text(
          *(column, row, f"{times}"),
          ha="center",
          va="center",
          color=color,
          fontsize=size_of_text,
        )
    _save(figure, path)


def chart_of_counts(counts: Counts, class_names: Sequence[str]) -> Chart:
  """Returns a chart of the precision, the recall and the F1 of each class."""
  scores = {
    "precision": counts.precision,
    "recall": counts.recall,
    "F1": counts.f1,
  }
  return chart_of_classes(scores, class_names, counts.labelled > 0)


def chart_of_classes(
  scores: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  is_shown: np.ndarray,
  colors: Sequence[str] = (),
) -> Chart:
  """Returns a chart with bars for each class, the lowest values first.

  Args:
    scores: name -> fraction for each class; at most three, and the last is the order.
    class_names: of all classes.
    is_shown: whether a class is drawn.
    colors: of the classes, if there is one score; () gives all the same colour.
  """
  *others, last = scores
  names = f"{', '.join(others)} and {last}" if others else last
  few = np.count_nonzero(is_shown) <= MOST_ROWS
  which = "each class" if few else f"the {MOST_ROWS} classes with the lowest {last}"
  draw = partial(
    _draw_classes,
    scores=scores,
    class_names=class_names,
    is_shown=is_shown,
    colors=colors,
  )
  text = f"{names} of {which}."
  return Chart("classes", "Classes", text[0].upper() + text[1:], draw)


def _draw_classes(
  path: Path,
  scores: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  is_shown: np.ndarray,
  colors: Sequence[str],
) -> None:
  seen = np.flatnonzero(is_shown)
  *_, last = scores.values()
  order = seen[np.argsort(last[seen], kind="stable")][:MOST_ROWS]
  of_scores = (*figure_style.OTHERS[3:1:-1], figure_style.EVALUATION)[-len(scores) :]
  bars: list[tuple[str, Any, Any]] = [
    (name, 100 * values[order], color)
    for (name, values), color in zip(scores.items(), of_scores, strict=True)
  ]
  if colors:
    ((name, values, _),) = bars
    bars = [(name, values, [colors[label] for label in order])]
  names = [class_names[label] for label in order]
  _draw_bars(path, names, bars, _NAME_WIDTH, unit="%")


def _draw_bars(
  path: Path,
  names: Sequence[str],
  bars: Sequence[tuple[str, Any, Any]],
  name_width: float,
  unit: str = "",
) -> None:
  """Draws horizontal bars, the first row at the top.

  Args:
    path: the PNG file.
    names: of the rows.
    bars: name, values and colour of each bar of a row, or its colours for all rows.
    name_width: in inches.
    unit: of the values.
  """
  thickness = 0.8 / len(bars)
  height = 0.9 + max(1, len(names)) * (0.16 + 0.08 * len(bars))
  with figure_style.styled_figure(6.5, height, layout="constrained") as figure:
    axes = figure.add_subplot()
    rows = np.arange(len(names))
    for i, (name, values, color) in enumerate(bars):
      axes.barh(rows - 0.4 + (i + 0.5) * thickness, values, thickness, color=color)
      axes.barh(0, 0, color=color, label=name)
    shown = [fit_text(name, name_width) for name in names]
    axes.set_yticks(rows, shown, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{bars[0][0]} {unit}" if len(bars) == 1 else unit)
    if unit == "%":
      axes.set_xlim(0, 100)
    if len(bars) > 1:
      figure.legend(loc="outside upper right", ncols=len(bars))
    _save(figure, path)


def draw_reliability(path: Path, answers: Answers) -> None:
  """Draws how often predictions are right, by their confidence."""
  found = calibration(answers)
  bins = len(found.counts)
  middles = (np.arange(bins) + 0.5) / bins
  with figure_style.styled_figure(4.6, 4.8, layout="constrained") as figure:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=figure_style.FAINT_TEXT, linewidth=1)
    filled = found.counts > 0
    upper.bar(
      middles[filled],
      found.accuracy[filled],
      1 / bins,
      color=figure_style.EVALUATION,
      edgecolor="white",
    )
    upper.plot(
      found.confidence[filled], found.accuracy[filled], "o", color="black", markersize=3
    )
    upper.set(ylim=(0, 1), ylabel="fraction that is right")
    upper.set_title(f"expected calibration error {100 * found.error:.1f} %")
    lower.bar(middles, found.counts, 1 / bins, color=figure_style.TRAINING)
    lower.set(xlim=(0, 1), xlabel="confidence", ylabel="images")
    lower.locator_params(axis="y", integer=True, nbins=3)
    _save(figure, path)


def draw_precision_recall(
  path: Path, curves: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
  """Draws curves of (precision, recall), fractions; the last one is bold."""
  with figure_style.styled_figure(4.6, 3.8, layout="constrained") as figure:
    axes = figure.add_subplot()
    *others, main = curves
    for precision, recall in others:
      axes.plot(recall, precision, color=figure_style.TRAINING, lw=0.8, alpha=0.6)
    axes.plot(main[1], main[0], color=figure_style.EVALUATION, lw=figure_style.BOLD)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="recall", ylabel="precision")
    _save(figure, path)


def draw_fit(
  path: Path, labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> None:
  """Draws predicted numbers against their labels, a panel for each number.

  Args:
    path: the PNG file.
    labels: [N, K].
    predictions: [N, K].
    names: of the K numbers; only the first `_MOST_PANELS` are drawn.
  """
  names = names[:_MOST_PANELS]
  columns = min(3, len(names))
  rows = -(-len(names) // columns)
  size = 3.2 * columns + 0.4, 3.2 * rows
  with figure_style.styled_figure(*size, layout="constrained") as figure:
    for i, name in enumerate(names):
      axes = figure.add_subplot(rows, columns, i + 1)
      ends = [f(x[:, i]) for f in (np.min, np.max) for x in (labels, predictions)]
      line = min(ends), max(ends)
      axes.plot(line, line, color=figure_style.FAINT_TEXT, lw=1)
      axes.plot(labels[:, i], predictions[:, i], "o", ms=2.5, alpha=0.4, mew=0)
      axes.set_title(fit_text(name, 2.6), parse_math=False)
      axes.set(xlabel="label", ylabel="prediction")
    _save(figure, path)


def draw_corruptions(
  path: Path, clean: float, errors: Mapping[str, Sequence[float]]
) -> None:
  """Draws a map of the top-1 errors of corrupted images.

  Args:
    path: the PNG file.
    clean: error of the images as they are, as a fraction.
    errors: name of a corruption -> error for each strength, as a fraction.
  """
  values = 100 * np.array([*errors.values()])
  height = 1.4 + 0.34 * len(values)
  with figure_style.styled_figure(6.0, height, layout="constrained") as figure:
    axes = figure.add_subplot()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.grid(False)
    axes.set_title(f"top-1 error, %; without a corruption {100 * clean:.1f} %")
    axes.set_xticks(
      range(values.shape[1]), [str(1 + i) for i in range(values.shape[1])]
    )
    axes.set_yticks(range(len(values)), [name.replace("_", " ") for name in errors])
    axes.set_xlabel("strength of the corruption")
    for (row, column), value in np.ndenumerate(values):
      color = "white" if value > 50 else figure_style.TEXT
      axes.text(
        *(column, row, f"{value:.1f}"),
        ha="center",
        va="center",
        color=color,
        fontsize=8,
      )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
  with replacing(str(path)) as part:
    figure.savefig(part, format="png")
