"""Average precision of boxes as COCO defines it (cocodataset.org/#detection-eval).

`match` compares the boxes of one image; `average_precision` ranks those of all images.
Both do what `COCOeval` of pycocotools does, and the tests compare the numbers with it.
Shapes: D detections, N true boxes, T thresholds of overlap, K classes.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from resnet_jax.runtime.arrays import Bool, Float, Float64, Int, Num

# Overlaps (IoU) from which a detection finds a true box. COCOeval builds its two lists
# by the same calls, so that not even the last bits differ.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = (
  100  # Of one class in one image; those with lower scores do not count.
)


@dataclasses.dataclass(frozen=True)
class Matches:
  """What the detections of one image found; D is at most 100 for each class.

  Attributes:
    scores: of the detections, the highest first.
    classes: of the detections.
    found: whether a detection found a true box, at each threshold.
    ignored: whether a detection does not count at a threshold, because it found only
      a crowd.
    truths: classes of the true boxes that are no crowds, sorted.
  """

  scores: Float[np.ndarray, " d"]
  classes: Int[np.ndarray, " d"]
  found: Bool[np.ndarray, "t d"]
  ignored: Bool[np.ndarray, "t d"]
  truths: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
  """Average precision as fractions.

  Attributes:
    scores: "ap", the mean over the thresholds 0.50, 0.55 ... 0.95; "ap50" and "ap75",
      at these thresholds. Each is the mean over the classes that have true boxes, NaN
      if none has.
    per_class: the same numbers for each class; NaN for a class without true boxes.
  """

  scores: dict[str, float]
  per_class: dict[str, Float64[np.ndarray, " k"]]


def match(
  boxes: Num[np.ndarray, "d 4"],
  scores: Float[np.ndarray, " d"],
  classes: Int[np.ndarray, " d"],
  truth: Num[np.ndarray, "n 6"],
) -> Matches:
  """Assigns the detections of an image to its true boxes.

  The detections of a class choose in the order of their scores, at each threshold for
  itself. Each takes the true box of its class that it overlaps most among those that
  are free. A crowd is chosen only if there is no such box, and stays free; its overlap
  is the fraction of the detection that lies in it.

  Args:
    boxes: x0, y0, x1, y1 of the detections, in the pixels of `truth`.
    scores: finite; detections of equal score keep their order.
    classes: in [0, K).
    truth: rows x0, y0, x1, y1, class, crowd (0 or 1); rows of class -1 are padding.
  """
  truth = np.asarray(truth, np.float64)
  truth = truth[truth[:, 4] >= 0]
  crowd = truth[:, 5] > 0
  chosen = _highest(scores, classes)
  boxes, scores, classes = boxes[chosen], scores[chosen], classes[chosen]
  overlap = _overlaps(np.asarray(boxes, np.float64), truth[:, :4], crowd)
  overlap[classes[:, None] != truth[:, 4]] = 0
  found = _assign(overlap[:, ~crowd])
  in_crowd = overlap[:, crowd].max(axis=1, initial=0) >= THRESHOLDS[:, None]
  truths = np.sort(truth[~crowd, 4]).astype(np.int32)
  return Matches(scores, classes.astype(np.int32), found, in_crowd & ~found, truths)


def _highest(
  scores: Float[np.ndarray, " d"], classes: Int[np.ndarray, " d"]
) -> Int[np.ndarray, " e"]:
  """Returns the detections that count, the highest score first."""
  order = np.lexsort((-scores, classes))  # By class, then by score; stable.
  ordered = classes[order]
  rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
  order = order[rank < MOST_DETECTIONS]
  return order[np.argsort(-scores[order], kind="stable")]


def _overlaps(
  boxes: Float64[np.ndarray, "d 4"],
  truth: Float64[np.ndarray, "n 4"],
  crowd: Bool[np.ndarray, " n"],
) -> Float64[np.ndarray, "d n"]:
  """Returns IoU, and for crowds the intersection over the detection's area."""
  low = np.maximum(boxes[:, None, :2], truth[:, :2])
  high = np.minimum(boxes[:, None, 2:], truth[:, 2:])
  common = np.prod((high - low).clip(0), axis=2)
  area, true_area = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (boxes, truth))
  whole = np.where(crowd, area[:, None], area[:, None] + true_area - common)
  overlap: np.ndarray = np.zeros_like(common)
  np.divide(common, whole, out=overlap, where=common > 0)
  return overlap


def _assign(overlap: Float64[np.ndarray, "d n"]) -> Bool[np.ndarray, "t d"]:
  """Returns which detections take a true box, at each threshold."""
  found = np.zeros((len(THRESHOLDS), len(overlap)), bool)
  # Of equal overlaps, COCOeval takes the last one, and `argmax` the first one.
  overlap = overlap[:, ::-1]
  free = np.ones((len(THRESHOLDS), overlap.shape[1]), bool)
  near = overlap >= THRESHOLDS[0]
  for detection in np.flatnonzero(near.any(axis=1)):
    # The few true boxes near the detection are all that matter.
    columns = np.flatnonzero(near[detection])
    values = free[:, columns] * overlap[detection, columns]
    best = values.argmax(axis=1)
    takes = np.flatnonzero(values.max(axis=1) >= THRESHOLDS)
    found[takes, detection] = True
    free[takes, columns[best[takes]]] = False
  return found


def average_precision(matches: Iterable[Matches], num_classes: int) -> AveragePrecision:
  """Returns the average precision of all images.

  The precision at each of 101 recalls is the highest at this recall or a higher one,
  and their mean is the average precision of a class at a threshold.

  Args:
    matches: of each image. Detections of equal score rank in the order of the images.
    num_classes: K.
  """
  every = list(matches)
  truths = np.concatenate([[], *(x.truths for x in every)]).astype(int)
  counts = np.bincount(truths, minlength=num_classes)
  by_class = _by_class(every, num_classes)
  values = np.full((num_classes, len(THRESHOLDS)), np.nan)
  for i in np.flatnonzero(counts):
    values[i] = _of_class(*by_class[i], int(counts[i]))
  per_class = {"ap": values.mean(axis=1), "ap50": values[:, 0], "ap75": values[:, 5]}
  has_any = counts.any()
  scores = {
    name: float(column[counts > 0].mean()) if has_any else np.nan
    for name, column in per_class.items()
  }
  return AveragePrecision(scores, per_class)


def _by_class(
  matches: Sequence[Matches], num_classes: int
) -> list[tuple[Bool[np.ndarray, "t d"], Bool[np.ndarray, "t d"]]]:
  """Returns (found, ignored) of each class, the highest score of all images first."""
  nothing = np.zeros((len(THRESHOLDS), 0), bool)
  scores = np.concatenate([[], *(x.scores for x in matches)])
  classes = np.concatenate([[], *(x.classes for x in matches)]).astype(int)
  found = np.concatenate([nothing, *(x.found for x in matches)], axis=1)
  ignored = np.concatenate([nothing, *(x.ignored for x in matches)], axis=1)
  order = np.lexsort((-scores, classes))
  ends = np.searchsorted(classes[order], np.arange(num_classes + 1))
  parts = [order[i:j] for i, j in itertools.pairwise(ends)]
  return [(found[:, part], ignored[:, part]) for part in parts]


def _of_class(
  found: Bool[np.ndarray, "t d"], ignored: Bool[np.ndarray, "t d"], count: int
) -> Float64[np.ndarray, " t"]:
  """Returns the average precision of a class with `count` true boxes."""
  right = np.cumsum(found, axis=1)
  wrong = np.cumsum(~found & ~ignored, axis=1)
  recall = right / count
  precision = right / np.maximum(right + wrong, 1)
  highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
  # The precision is 0 at recalls that are never reached.
  highest = np.pad(highest, ((0, 0), (0, 1)))
  at = [np.searchsorted(row, _RECALLS) for row in recall]
  at_recalls: np.ndarray = np.take_along_axis(highest, np.stack(at), axis=1)
  mean: np.ndarray = at_recalls.mean(axis=1)
  return mean
