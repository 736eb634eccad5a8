"""The report of a segmentation: a class for each pixel.

Shapes: K classes.
"""

import functools

import numpy as np
from matplotlib.colors import to_hex

from resnet_jax.data.labels import IGNORED
from resnet_jax.evaluation import pictures
from resnet_jax.evaluation.contents import Caption, Contents, Grid
from resnet_jax.evaluation.intervals import bootstrap
from resnet_jax.evaluation.places import MaskAnswers
from resnet_jax.inference.segmentation import overlay, palette
from resnet_jax.runtime.arrays import Float64, Int, Num
from resnet_jax.runtime.tables import Table
from resnet_jax.training.segmentation_scores import ious_of_counts

_MOST_BARS = 4


def score(answers: MaskAnswers) -> dict[str, float]:
  """Returns the results of the evaluation."""
  return answers.results


def contents(answers: MaskAnswers) -> Contents:
  """Returns what the report of these answers shows."""
  counts = np.stack(answers.summaries).astype(np.float64)  # As the weights are.
  ious = ious_of_counts(*counts.sum(axis=0))
  return Contents(
    f"{len(ious):,} classes",
    answers.results,
    bootstrap(len(counts), {}, functools.partial(_of_weights, counts)),
    {"predictions": _predictions(answers), "per_class": _per_class(answers)},
    [
      pictures.chart_of_classes(
        *({"IoU": ious}, answers.class_names, ~np.isnan(ious)),
        _colors(np.arange(len(ious))),
      )
    ],
    [
      Grid(
        *("mistakes", "Worst images"),
        "These images have the lowest mean IoU. The left picture shows the labels, the "
        "right one the predictions; ignored pixels are pale. The bars show the IoU of "
        "the classes with the most pixels.",
        [row for row in answers.worst_first if answers.summaries[row].any()],
      )
    ],
    functools.partial(_caption, answers),
    functools.partial(_images, answers),
  )


def _scores(counts: Num[np.ndarray, "3 k"]) -> dict[str, float]:
  right, labelled, _ = counts
  if not labelled.any():
    return {"mean_iou": np.nan, "pixel_accuracy": np.nan}
  return {
    "mean_iou": float(np.nanmean(ious_of_counts(*counts))),
    "pixel_accuracy": float(right.sum() / labelled.sum()),
  }


def _of_weights(
  counts: Num[np.ndarray, "n 3 k"], weights: Float64[np.ndarray, " n"]
) -> dict[str, float]:
  return _scores(np.tensordot(weights, counts, 1))


def _predictions(answers: MaskAnswers) -> Table:
  header = ["path", "mean_iou", "pixel_accuracy"]
  return [header] + [
    [answers.name(int(place)), *(_text(x) for x in _scores(summary).values())]
    for place, summary in zip(answers.index, answers.summaries, strict=True)
  ]


def _text(value: float) -> str:
  return "" if np.isnan(value) else f"{value:.6f}"


def _per_class(answers: MaskAnswers) -> Table:
  counts = np.sum(answers.summaries, axis=0)
  ious = ious_of_counts(*counts)
  return [["class", "pixels", "predicted", "right", "iou"]] + [
    [name, f"{labelled}", f"{predicted}", f"{right}", _text(iou)]
    for name, (right, labelled, predicted), iou in zip(
      answers.class_names, counts.T, ious, strict=True
    )
  ]


def _caption(answers: MaskAnswers, row: int) -> Caption:
  summary = answers.summaries[row]
  mean, ious = _scores(summary)["mean_iou"], ious_of_counts(*summary)
  _, labelled, _ = summary
  largest = np.argsort(-labelled, kind="stable")[: np.count_nonzero(labelled)]
  shown = largest[:_MOST_BARS]
  bars = [(answers.class_names[i], float(ious[i])) for i in shown]
  return Caption([f"mean IoU {100 * mean:.1f} %"], "", bars, _colors(shown))


def _images(answers: MaskAnswers, row: int) -> tuple[np.ndarray, np.ndarray]:
  image, label, found = answers.worst[row]
  classes = np.where(label == IGNORED, IGNORED, found["classes"])
  return overlay(image, label), overlay(image, classes)


def _colors(classes: Int[np.ndarray, " n"]) -> list[str]:
  return [to_hex(color / 255) for color in palette()[classes]]
