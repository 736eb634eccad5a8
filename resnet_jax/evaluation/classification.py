"""The report of a classification: one class for each image."""

import functools
import math

import numpy as np

from resnet_jax.evaluation import mistakes, pictures
from resnet_jax.evaluation.answers import Answers
from resnet_jax.evaluation.contents import Caption, Chart, Contents, Grid
from resnet_jax.evaluation.intervals import bootstrap
from resnet_jax.evaluation.scores import Counts, per_image, score
from resnet_jax.runtime.figure_style import RIGHT, WRONG
from resnet_jax.runtime.tables import Table


def contents(answers: Answers) -> Contents:
  """Returns what the report of these answers shows."""
  return Contents(
    f"{len(set(answers.labels.tolist())):,} classes",
    score(answers),
    intervals(answers),
    {
      "predictions": _predictions(answers),
      "per_class": _per_class(answers),
      "confusion": _confusion(answers),
    },
    _charts(answers),
    _grids(answers),
    functools.partial(_caption, answers),
  )


def intervals(answers: Answers, seed: int = 0) -> dict[str, tuple[float, float]]:
  """Returns the intervals of the scores; see `bootstrap`."""
  return bootstrap(
    len(answers.labels),
    per_image(answers),
    lambda weights: Counts.of(answers, weights).scores(),
    seed=seed,
  )


def _predictions(answers: Answers) -> Table:
  predictions = answers.predictions
  logs, margins = answers.log_probabilities, mistakes.margins(answers)
  names = answers.class_names
  header = ["path", "label", "prediction", "probability", "margin"]
  return [header] + [
    [
      *(answers.name(int(place)), names[label], names[found]),
      *(f"{math.exp(logs[row, found]):.6f}", f"{margins[row]:.6f}"),
    ]
    for row, (place, label, found) in enumerate(
      zip(answers.index, answers.labels, predictions, strict=True)
    )
  ]


def _per_class(answers: Answers) -> Table:
  counts = Counts.of(answers)
  header = ["class", "images", "predicted", "right", "precision", "recall", "f1"]
  return [header] + [
    [
      name,
      *(f"{int(x[i])}" for x in (counts.labelled, counts.predicted, counts.right)),
      *(f"{x[i]:.6f}" for x in (counts.precision, counts.recall, counts.f1)),
    ]
    for i, name in enumerate(answers.class_names)
  ]


def _confusion(answers: Answers) -> Table:
  names, right = answers.class_names, Counts.of(answers).right
  rows = [(i, i, int(times)) for i, times in enumerate(right) if times]
  rows = sorted([*rows, *pictures.confused_pairs(answers)])
  return [["label", "prediction", "images"]] + [
    [names[label], names[found], f"{times}"] for label, found, times in rows
  ]


def _charts(answers: Answers) -> list[Chart]:
  many = len(answers.class_names) > pictures.MOST_CELLS
  pairs = pictures.confused_pairs(answers)
  confusion = "Rows are labels, columns are predictions; a row's colours add up to 1."
  if many:
    confusion = "The pairs of label → prediction with the most mistakes."
  if not pairs:
    confusion = "No image is confused with another class."
  return [
    Chart(
      *("confusion", "Confusion", confusion),
      None
      if many and not pairs
      else functools.partial(pictures.draw_confusion, answers=answers),
    ),
    pictures.chart_of_counts(Counts.of(answers), answers.class_names),
    Chart(
      *("reliability", "Reliability"),
      "How often predictions of a confidence are right. Above the line, the network is "
      "too cautious; below it, too sure.",
      functools.partial(pictures.draw_reliability, answers=answers),
    ),
  ]


def _grids(answers: Answers) -> list[Grid]:
  return [
    Grid(
      *("mistakes", "Worst mistakes"),
      "Wrong predictions; the least probable labels come first.",
      mistakes.worst(answers),
    ),
    Grid(
      *("unsure", "Least sure"),
      "The two most probable classes are nearly as probable.",
      mistakes.least_sure(answers),
    ),
    Grid(
      *("labels", "Likely wrong labels"),
      "The network is as sure of another class as it usually is of that class's own "
      "images (confident learning, Northcutt et al. 2021). Look at these labels.",
      mistakes.likely_wrong_labels(answers),
    ),
  ]


def _caption(answers: Answers, row: int) -> Caption:
  names, label = answers.class_names, int(answers.labels[row])
  probabilities = np.exp(answers.log_probabilities[row])
  best = np.argsort(-answers.logits[row], kind="stable")[:2]
  is_right = best[0] == label
  return Caption(
    [f"{'✓' if is_right else '✗'} label: {names[label]}"],
    RIGHT if is_right else WRONG,
    [(names[i], float(probabilities[i])) for i in best],
  )
