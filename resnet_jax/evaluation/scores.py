"""Scores of a classifier from its answers, and the texts of all scores.

The definitions are those of scikit-learn, and the tests compare the numbers with it.
Shapes: N images, K classes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from sklearn import metrics

from resnet_jax.evaluation.answers import Answers
from resnet_jax.runtime.arrays import Float64, Int

BINS = 15  # Of the calibration error, as in Guo et al. 2017.
# Texts for people, in the order of a report. Scores that are fractions end in %.
TEXTS = {
  "top1": "top-1 accuracy, %",
  "top5": "top-5 accuracy, %",
  "balanced_accuracy": "balanced accuracy (mean recall of the classes), %",
  "macro_precision": "precision, mean of the classes, %",
  "macro_recall": "recall, mean of the classes, %",
  "macro_f1": "F1, mean of the classes, %",
  "weighted_precision": "precision, weighted by the images of a class, %",
  "weighted_recall": "recall, weighted by the images of a class, %",
  "weighted_f1": "F1, weighted by the images of a class, %",
  "kappa": "Cohen's kappa",
  "micro_precision": "precision of all labels together, %",
  "micro_recall": "recall of all labels together, %",
  "micro_f1": "F1 of all labels together (micro), %",
  "sample_f1": "F1 of the classes of an image, mean of the images, %",
  "exact": "images with exactly the right classes, %",
  "hamming": "wrong labels among all images and classes, %",
  "r2": "R2 (coefficient of determination), mean of the numbers",
  "mae": "mean absolute error, mean of the numbers",
  "rmse": "root mean squared error, mean of the numbers",
  "median_error": "median absolute error, mean of the numbers",
  "largest_error": "largest absolute error",
  "mean_iou": "mean IoU of the classes, %",
  "pixel_accuracy": "pixel accuracy, %",
  "ap": "average precision (AP), mean over the IoU thresholds 0.50 to 0.95, %",
  "ap50": "average precision at the IoU threshold 0.50 (AP50), %",
  "ap75": "average precision at the IoU threshold 0.75 (AP75), %",
  "class_loss": "focal loss of the classes",
  "box_loss": "loss of the boxes",
  "loss": "log loss, nats",
  "brier": "Brier score, from 0 to 2",
  "calibration_error": f"expected calibration error, {BINS} bins, %",
  "auroc": "area under the ROC curve, mean of the classes",
  "average_precision": "average precision, mean of the classes (mAP)",
}


@dataclasses.dataclass(frozen=True)
class Counts:
  """Numbers of images of each class; they may be weighted sums.

  Attributes:
    right: images of the class that are predicted as it.
    labelled: images of the class.
    predicted: images that are predicted as it.
  """

  right: Float64[np.ndarray, " k"]
  labelled: Float64[np.ndarray, " k"]
  predicted: Float64[np.ndarray, " k"]

  @classmethod
  def of(cls, answers: Answers, weights: np.ndarray | None = None) -> "Counts":
    """Counts images; with weights, an image counts so many times."""
    labels, predictions = answers.labels, answers.predictions
    weights = np.ones(len(labels)) if weights is None else weights
    count = functools.partial(np.bincount, minlength=answers.logits.shape[1])
    right = weights * (labels == predictions)
    return cls(
      count(labels, right), count(labels, weights), count(predictions, weights)
    )

  @property
  def precision(self) -> Float64[np.ndarray, " k"]:
    """Fraction of the predictions of each class that are right; 0 of none."""
    return _divide(self.right, self.predicted)

  @property
  def recall(self) -> Float64[np.ndarray, " k"]:
    """Fraction of the images of each class that are found; 0 of none."""
    return _divide(self.right, self.labelled)

  @property
  def f1(self) -> Float64[np.ndarray, " k"]:
    """Harmonic mean of precision and recall; 0 without images and predictions."""
    return _divide(2 * self.right, self.labelled + self.predicted)

  def scores(self) -> dict[str, float]:
    """Returns the scores that depend on the predicted classes only.

    Classes without an image and without a prediction do not count.
    """
    seen = (self.labelled + self.predicted) > 0
    total = self.labelled.sum()
    found: dict[str, float] = {
      "balanced_accuracy": float(self.recall[self.labelled > 0].mean())
    }
    for name in ("precision", "recall", "f1"):
      values = getattr(self, name)
      found[f"macro_{name}"] = float(values[seen].mean())
      found[f"weighted_{name}"] = float(values @ self.labelled / total)
    by_chance = self.labelled @ self.predicted / total**2
    observed = self.right.sum() / total
    found["kappa"] = float(
      (observed - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan
    )
    return found


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  found: np.ndarray = np.divide(a, b, out=np.zeros_like(a), where=b > 0)
  return found


def per_image(answers: Answers) -> dict[str, Float64[np.ndarray, " n"]]:
  """Returns the scores that are means over the images, for each image."""
  logs, ranks = answers.log_probabilities, answers.ranks
  own = np.take_along_axis(logs, answers.labels[:, None], axis=1)[:, 0]
  squares = np.square(np.exp(logs)).sum(axis=1) - 2 * np.exp(own) + 1
  found = {"top1": (ranks < 1).astype(np.float64), "loss": -own, "brier": squares}
  if logs.shape[1] > 5:
    found["top5"] = (ranks < 5).astype(np.float64)
  return found


def score(answers: Answers) -> dict[str, float]:
  """Returns all scores, a part of `TEXTS`, and "count".

  AUROC and average precision are means over the classes that have images, and of which
  not all images are.
  """
  found = {name: float(values.mean()) for name, values in per_image(answers).items()}
  found |= Counts.of(answers).scores()
  found["calibration_error"] = calibration(answers).error
  ranked = {
    "auroc": metrics.roc_auc_score,
    "average_precision": metrics.average_precision_score,
  }
  for name, function in ranked.items():
    values = [*_of_classes(answers, function)]
    if values:
      found[name] = float(np.mean(values))
  known = {name: found[name] for name in TEXTS if name in found}
  return known | {"count": len(answers.labels)}


def _of_classes(
  answers: Answers, function: Callable[[np.ndarray, np.ndarray], float]
) -> Iterator[float]:
  logs = answers.log_probabilities
  for label, count in enumerate(np.bincount(answers.labels)):
    if 0 < count < len(answers.labels):
      yield function(answers.labels == label, logs[:, label])


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Confidence and accuracy of the images, in bins of equal width by confidence.

  Attributes:
    counts: images of each bin.
    confidence: mean probability of the predicted class; NaN in an empty bin.
    accuracy: fraction of right predictions; NaN in an empty bin.
  """

  counts: Int[np.ndarray, " bins"]
  confidence: Float64[np.ndarray, " bins"]
  accuracy: Float64[np.ndarray, " bins"]

  @property
  def error(self) -> float:
    """The expected calibration error (Guo et al. 2017, equation 3), in [0, 1]."""
    gaps = np.nan_to_num(np.abs(self.confidence - self.accuracy))
    return float(gaps @ self.counts / self.counts.sum())


def calibration(answers: Answers, bins: int = BINS) -> Calibration:
  """Compares the confidence of predictions with how often they are right."""
  confidence = np.exp(answers.log_probabilities.max(axis=1))
  # A bin includes its upper edge, as in Guo et al. 2017.
  place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  counts = np.bincount(place, minlength=bins)
  with np.errstate(invalid="ignore"):
    mean = np.bincount(place, confidence, bins) / counts
    accuracy = np.bincount(place, answers.ranks < 1, bins) / counts
  return Calibration(counts, mean, accuracy)


def score_rows(
  found: Mapping[str, float], ranges: Mapping[str, tuple[float, float]] | None = None
) -> list[list[str]]:
  """Returns scores as the rows of a table, the header first.

  Args:
    found: result of `score`.
    ranges: interval of some scores.
  """
  rows = [["score", "value", "95 % interval"]]
  for name, text in TEXTS.items():
    if name in found:
      scale, digits = (100, 2) if text.endswith("%") else (1, 4)
      ends = [f"{scale * x:.{digits}f}" for x in (ranges or {}).get(name, ())]
      rows.append([text, f"{scale * found[name]:.{digits}f}", " to ".join(ends)])
  return rows
