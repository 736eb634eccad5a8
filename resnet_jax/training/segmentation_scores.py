"""Scores of semantic segmentation from a confusion matrix of pixels.

Entry [i, j] of the matrix is the number of pixels of class i that are predicted as
class j. Ignored pixels are not in it. The definitions are those of scikit-learn, and
the tests compare the numbers with it. K is the number of classes.
"""

import math

import numpy as np

from resnet_jax.runtime.arrays import Float64, Int, Num


def class_ious(confusion: Int[np.ndarray, "k k"]) -> Float64[np.ndarray, " k"]:
  """Returns the intersection over union of each class (the Jaccard index), in [0, 1].

  It is the number of pixels of the class that are predicted as it, divided by the
  number of pixels that are of the class, or predicted as it, or both. It is NaN for a
  class without a pixel and without a prediction.
  """
  return ious_of_counts(
    np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
  )


def ious_of_counts(
  right: Num[np.ndarray, " k"],
  labelled: Num[np.ndarray, " k"],
  predicted: Num[np.ndarray, " k"],
) -> Float64[np.ndarray, " k"]:
  """Returns `class_ious` from the numbers of pixels of each class.

  Args:
    right: pixels of the class that are predicted as it.
    labelled: pixels of the class.
    predicted: pixels that are predicted as it.
  """
  union = labelled + predicted - right
  found = np.full(len(right), math.nan)
  np.divide(right, union, out=found, where=union > 0)
  return found


def segmentation_scores(confusion: Int[np.ndarray, "k k"]) -> dict[str, float]:
  """Returns the scores of all images together.

  "mean_iou" is the mean of `class_ious` over the classes with a pixel or a prediction,
  as scikit-learn's `jaccard_score(average="macro")` computes it. A class with a pixel
  and no right prediction counts as 0. "pixel_accuracy" is the fraction of pixels whose
  class is right. Both are NaN without pixels. "count" is the number of pixels.
  """
  count = int(confusion.sum())
  if not count:
    return {"mean_iou": math.nan, "pixel_accuracy": math.nan, "count": 0}
  return {
    "mean_iou": float(np.nanmean(class_ious(confusion))),
    "pixel_accuracy": float(np.trace(confusion) / count),
    "count": count,
  }
