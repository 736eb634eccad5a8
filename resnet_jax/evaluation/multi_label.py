"""Scores, thresholds and report of a multi-label task: several classes for each image.

Shapes: N images, K classes.
"""

import functools
import warnings
from pathlib import Path

import numpy as np
from sklearn import metrics

from resnet_jax.evaluation import pictures
from resnet_jax.evaluation.answers import SetAnswers
from resnet_jax.evaluation.contents import Caption, Chart, Contents, Grid
from resnet_jax.evaluation.intervals import bootstrap
from resnet_jax.evaluation.scores import Counts
from resnet_jax.runtime.arrays import Bool, Float64
from resnet_jax.runtime.figure_style import RIGHT, WRONG
from resnet_jax.runtime.tables import Table


def count(answers: SetAnswers, weights: np.ndarray | None = None) -> Counts:
  """Counts images of each class; with weights, an image counts so many times."""
  labels, found = answers.labels, answers.predictions
  weights = np.ones(len(labels)) if weights is None else weights
  return Counts(weights @ (labels & found), weights @ labels, weights @ found)


def per_image(answers: SetAnswers) -> dict[str, Float64[np.ndarray, " n"]]:
  """Returns the scores that are means over the images, for each image.

  "sample_f1" is 1 for an image without classes for which none is predicted.
  """
  labels, found = answers.labels, answers.predictions
  size = labels.sum(axis=1) + found.sum(axis=1)
  f1 = np.where(size, 2 * (labels & found).sum(axis=1) / np.maximum(size, 1), 1.0)
  logits = answers.logits.astype(np.float64)
  losses = np.logaddexp(0, np.where(labels, -logits, logits)).mean(axis=1)
  different = labels != found
  return {
    "sample_f1": f1,
    "exact": (~different.any(axis=1)).astype(np.float64),
    "hamming": different.mean(axis=1),
    "loss": losses,
  }


def _of_counts(counts: Counts) -> dict[str, float]:
  whole = Counts(*(np.array([x.sum()]) for x in vars(counts).values()))
  found = {f"micro_{x}": getattr(whole, x)[0] for x in ("precision", "recall", "f1")}
  for name in ("precision", "recall", "f1"):
    found[f"macro_{name}"] = getattr(counts, name).mean()
  return {name: float(value) for name, value in found.items()}


def score(answers: SetAnswers) -> dict[str, float]:
  """Returns all scores, a part of `scores.TEXTS`, and "count".

  AUROC and average precision are means over the classes that some images have, and
  others do not have.
  """
  found = {name: float(values.mean()) for name, values in per_image(answers).items()}
  found |= _of_counts(count(answers))
  ranked = {
    "auroc": metrics.roc_auc_score,
    "average_precision": metrics.average_precision_score,
  }
  seen = _ranked_classes(answers)
  for name, function in ranked.items():
    values = [function(answers.labels[:, i], answers.logits[:, i]) for i in seen]
    if values:
      found[name] = float(np.mean(values))
  return found | {"count": len(answers.labels)}


def _ranked_classes(answers: SetAnswers) -> np.ndarray:
  share = answers.labels.mean(axis=0)
  return np.flatnonzero((share > 0) & (share < 1))


def fit_thresholds(answers: SetAnswers) -> tuple[float, ...]:
  """Returns the threshold of each class with the highest F1 on these images.

  It lies in the middle between two probabilities. Of equal F1, the highest threshold is
  taken. A class without images gets 1/2. The images must not be those that the network
  was trained on, nor those on which it is evaluated.
  """
  return tuple(
    _best_threshold(label, probabilities)
    for label, probabilities in zip(
      answers.labels.T, answers.probabilities.T, strict=True
    )
  )


def _best_threshold(
  label: Bool[np.ndarray, " n"], probabilities: Float64[np.ndarray, " n"]
) -> float:
  if not label.any():
    return 0.5
  order = np.argsort(-probabilities, kind="stable")
  sorted_ones = probabilities[order]
  predicted = np.arange(1, len(order) + 1)
  f1 = 2 * np.cumsum(label[order]) / (predicted + label.sum())
  # Images of equal probability are predicted together.
  ends = np.append(sorted_ones[:-1] > sorted_ones[1:], True)
  best = int(np.argmax(np.where(ends, f1, -1)))
  following = sorted_ones[best + 1] if best + 1 < len(order) else 0.0
  return float((sorted_ones[best] + following) / 2)


def contents(answers: SetAnswers) -> Contents:
  """Returns what the report of these answers shows."""
  counts = count(answers)
  per = per_image(answers)
  wrong = np.flatnonzero(per["exact"] == 0)
  worst = wrong[np.argsort(-per["loss"][wrong], kind="stable")]
  return Contents(
    f"{len(answers.class_names):,} classes, any number for each image,",
    score(answers),
    bootstrap(
      len(answers.labels),
      per,
      lambda weights: _of_counts(count(answers, weights)),
    ),
    {"predictions": _predictions(answers), "per_class": _per_class(answers, counts)},
    [
      pictures.chart_of_counts(counts, answers.class_names),
      Chart(
        *("precision_recall", "Precision and recall"),
        "Precision and recall of each class for all thresholds; the area below a curve "
        "is about its average precision. The bold curve takes all labels together.",
        functools.partial(_draw_curves, answers=answers),
      ),
    ],
    [
      Grid(
        *("mistakes", "Worst mistakes"),
        "Images with a wrong or a missing class; the highest loss comes first. + is a "
        "class that is missing in the prediction, - one that is wrongly predicted.",
        worst,
      )
    ],
    functools.partial(_caption, answers),
  )


def _draw_curves(path: Path, answers: SetAnswers) -> None:
  labels, logits = answers.labels, answers.logits
  seen = _ranked_classes(answers)
  rows = [(labels[:, i], logits[:, i]) for i in seen]
  curves = [
    metrics.precision_recall_curve(*row)[:2]
    for row in [*rows, (labels.ravel(), logits.ravel())]
  ]
  pictures.draw_precision_recall(path, curves)


def _names(answers: SetAnswers, chosen: np.ndarray) -> str:
  return ";".join(answers.class_names[i] for i in np.flatnonzero(chosen))


def _predictions(answers: SetAnswers) -> Table:
  header = ["path", "label", "prediction", *answers.class_names]
  return [header] + [
    [
      answers.name(int(place)),
      _names(answers, label),
      _names(answers, found),
      *(f"{x:.6f}" for x in probabilities),
    ]
    for place, label, found, probabilities in zip(
      answers.index,
      answers.labels,
      answers.predictions,
      answers.probabilities,
      strict=True,
    )
  ]


def _per_class(answers: SetAnswers, counts: Counts) -> Table:
  header = ["class", "images", "predicted", "right", "threshold"]
  header += ["precision", "recall", "f1", "average_precision"]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # A class without images has no precision.
    ranked = [
      metrics.average_precision_score(label, logits)
      for label, logits in zip(answers.labels.T, answers.logits.T, strict=True)
    ]
  return [header] + [
    [
      name,
      *(f"{int(x[i])}" for x in (counts.labelled, counts.predicted, counts.right)),
      f"{answers.limits[i]:.6f}",
      *(f"{x[i]:.6f}" for x in (counts.precision, counts.recall, counts.f1, ranked)),
    ]
    for i, name in enumerate(answers.class_names)
  ]


def _caption(answers: SetAnswers, row: int) -> Caption:
  label, found = answers.labels[row], answers.predictions[row]
  missing, extra = label & ~found, found & ~label
  signs = [f"+{answers.class_names[i]}" for i in np.flatnonzero(missing)]
  signs += [f"-{answers.class_names[i]}" for i in np.flatnonzero(extra)]
  best = np.argsort(-answers.logits[row], kind="stable")[:3]
  return Caption(
    [f"label: {_names(answers, label) or 'none'}", ", ".join(signs) or "✓"],
    WRONG if signs else RIGHT,
    [(answers.class_names[i], float(answers.probabilities[row, i])) for i in best],
  )
