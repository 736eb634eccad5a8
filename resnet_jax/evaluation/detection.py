"""The report of a detection: objects with a class and a box."""

import functools
import math
from typing import Any

import numpy as np

from resnet_jax.evaluation import pictures
from resnet_jax.evaluation.contents import Caption, Contents, Grid
from resnet_jax.evaluation.places import LOWEST_SCORE, BoxAnswers, mistakes
from resnet_jax.inference.detector import FoundObjects
from resnet_jax.inference.drawn_boxes import draw_boxes
from resnet_jax.inference.image_grid import as_rgb
from resnet_jax.runtime.tables import Table
from resnet_jax.training.average_precision import average_precision

_SIDE = 375  # Pixels from which the texts at boxes can be read.


def score(answers: BoxAnswers) -> dict[str, float]:
  """Returns the results of the evaluation, with both losses instead of their sum."""
  return {name: x for name, x in answers.results.items() if name != "loss"}


def contents(answers: BoxAnswers) -> Contents:
  """Returns what the report of these answers shows."""
  names = answers.class_names
  per_class = average_precision(answers.summaries, len(names)).per_class
  truths = np.concatenate([matches.truths for matches in answers.summaries])
  counts = np.bincount(truths, minlength=len(names))
  table = [["class", "objects", *per_class]] + [
    [name, f"{counts[i]}", *(f"{values[i]:.6f}" for values in per_class.values())]
    for i, name in enumerate(names)
  ]
  scores = {"AP50": per_class["ap50"], "AP": per_class["ap"]}
  wrong = [row for row in answers.worst_first if any(mistakes(answers.summaries[row]))]
  return Contents(
    f"{len(names):,} classes, with {len(truths):,} objects,",
    score(answers),
    {},  # Each resample would rank the detections of all images again.
    {"predictions": _predictions(answers), "per_class": table},
    [pictures.chart_of_classes(scores, names, counts > 0)],
    [
      Grid(
        *("mistakes", "Most mistakes"),
        "In these images, the most objects were missed or wrongly found. The left "
        "picture shows the labels, the right one the detections with a probability of "
        f"at least {100 * LOWEST_SCORE:.0f} %. A detection is right if it has the "
        "class of an object and an IoU of at least 0.5 with its box.",
        wrong,
      )
    ],
    functools.partial(_caption, answers),
    functools.partial(_images, answers),
  )


def _predictions(answers: BoxAnswers) -> Table:
  header = ["path", "objects", "missed", "wrong"]
  return [header] + [
    [
      answers.name(int(place)),
      *(f"{x}" for x in (len(matches.truths), *mistakes(matches))),
    ]
    for place, matches in zip(answers.index, answers.summaries, strict=True)
  ]


def _caption(answers: BoxAnswers, row: int) -> Caption:
  missed, wrong = mistakes(answers.summaries[row])
  return Caption([f"{missed} missed, {wrong} wrong"], "")


def _images(answers: BoxAnswers, row: int) -> tuple[np.ndarray, np.ndarray]:
  image, label, found = answers.worst[row]
  names, rgb = answers.class_names, as_rgb(image)
  enlarge = math.ceil(_SIDE / min(rgb.shape[:2]))
  true = label[label[:, 4] >= 0]
  classes = true[:, 4].astype(int)
  texts = [
    f"{names[i]} (crowd)" if is_crowd else names[i]
    for i, is_crowd in zip(classes, true[:, 5] > 0, strict=True)
  ]
  is_found = found["classes"] >= 0
  kept: dict[str, Any] = {
    name: found[name][is_found] for name in ("boxes", "scores", "classes")
  }
  return (
    draw_boxes(rgb, true[:, :4], classes, texts, enlarge),
    FoundObjects("", **kept).draw(image, names, LOWEST_SCORE, enlarge),
  )
