"""Scores and report of a regression: one or several numbers for each image.

Shapes: N images, K numbers.
"""

import functools

import numpy as np
from sklearn import metrics

from resnet_jax.evaluation import pictures
from resnet_jax.evaluation.answers import NumberAnswers
from resnet_jax.evaluation.contents import Caption, Chart, Contents, Grid
from resnet_jax.evaluation.intervals import bootstrap
from resnet_jax.runtime.tables import Table


def _scores_of_numbers(answers: NumberAnswers) -> dict[str, list[float]]:
  """Returns the scores of each number; R2 is NaN of a number that is constant."""
  labels, found = answers.labels.astype(np.float64), answers.predictions
  errors = np.abs(found - labels)
  r2 = np.full(labels.shape[1], np.nan)
  varied = np.ptp(labels, axis=0) > 0
  if varied.any():
    r2[varied] = metrics.r2_score(
      labels[:, varied], found[:, varied], multioutput="raw_values"
    )
  return {
    "r2": r2.tolist(),
    "mae": errors.mean(axis=0).tolist(),
    "rmse": np.sqrt(np.square(errors).mean(axis=0)).tolist(),
    "median_error": np.median(errors, axis=0).tolist(),
    "largest_error": errors.max(axis=0).tolist(),
  }


def score(answers: NumberAnswers) -> dict[str, float]:
  """Returns all scores, a part of `scores.TEXTS`, and "count".

  They are means over the numbers, except for the largest error.
  """
  of_numbers = _scores_of_numbers(answers)
  largest = max(of_numbers.pop("largest_error"))
  found = {
    name: float(np.nanmean(values))
    for name, values in of_numbers.items()
    if not np.isnan(values).all()
  }
  return found | {"largest_error": largest, "count": len(answers.labels)}


def contents(answers: NumberAnswers) -> Contents:
  """Returns what the report of these answers shows."""
  errors = np.abs(answers.predictions - answers.labels)
  # Numbers of different units are compared by their spread in training.
  relative = (errors / np.array(answers.std)).max(axis=1)
  several = len(answers.class_names) > 1
  return Contents(
    f"{len(answers.class_names):,} number{'s' * several} each",
    score(answers),
    bootstrap(
      len(errors),
      {"mae": errors.mean(axis=1)},
      functools.partial(_of_weights, answers),
    ),
    {"predictions": _predictions(answers), "per_number": _per_number(answers)},
    [
      Chart(
        *("fit", "Predictions"),
        "Predicted numbers against the labels; the line is where they are equal.",
        functools.partial(
          pictures.draw_fit,
          labels=answers.labels,
          predictions=answers.predictions,
          names=answers.class_names,
        ),
      )
    ],
    [
      Grid(
        *("mistakes", "Largest errors"),
        "The largest errors, compared with the spread of the number in training.",
        np.argsort(-relative, kind="stable"),
      )
    ],
    functools.partial(_caption, answers),
  )


def _of_weights(answers: NumberAnswers, weights: np.ndarray) -> dict[str, float]:
  labels, total = answers.labels.astype(np.float64), weights.sum()
  squares = weights @ np.square(answers.predictions - labels) / total
  mean = weights @ labels / total
  spread = weights @ np.square(labels - mean) / total
  with np.errstate(divide="ignore", invalid="ignore"):
    r2 = 1 - squares / spread
  rmse = float(np.sqrt(squares).mean())
  return {"rmse": rmse, "r2": float(r2[spread > 0].mean()) if any(spread) else np.nan}


def _predictions(answers: NumberAnswers) -> Table:
  names = answers.class_names
  header = ["path", *(f"label of {x}" for x in names), *names]
  return [header] + [
    [answers.name(int(place)), *(f"{x:.6g}" for x in (*label, *found))]
    for place, label, found in zip(
      answers.index, answers.labels, answers.predictions, strict=True
    )
  ]


def _per_number(answers: NumberAnswers) -> Table:
  of_numbers = _scores_of_numbers(answers)
  return [["number", *of_numbers]] + [
    [name, *(f"{values[i]:.6g}" for values in of_numbers.values())]
    for i, name in enumerate(answers.class_names)
  ]


def _caption(answers: NumberAnswers, row: int) -> Caption:
  pairs = zip(
    answers.class_names, answers.labels[row], answers.predictions[row], strict=True
  )
  lines = [f"{name}: {found:.4g}, label {label:.4g}" for name, label, found in pairs]
  return Caption(lines[:3], "")
