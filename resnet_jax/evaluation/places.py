"""What a network finds in every image of a split: masks or boxes, with the labels.

Shapes: N images, S side of the squares, C channels, K classes.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from resnet_jax.data.batch import Batch
from resnet_jax.data.batches.preprocess import create_normalize
from resnet_jax.evaluation.passes import compiled
from resnet_jax.models.folding import folded_model
from resnet_jax.models.variables import Variables
from resnet_jax.runs.metrics import HostMetrics, Metrics, add_metrics, to_host
from resnet_jax.runtime.arrays import Array, Int, UInt
from resnet_jax.runtime.mesh import replicated
from resnet_jax.training.average_precision import Matches
from resnet_jax.training.dense_tasks import match_found
from resnet_jax.training.evaluator import Prepared, check_results
from resnet_jax.training.segmentation_scores import ious_of_counts
from resnet_jax.training.task_metrics import compute_metrics, results_of

MOST_EXAMPLES = 12
# The lowest probability of a detection that is drawn, and may be a mistake.
LOWEST_SCORE = 0.5


class Example(NamedTuple):
  """An image, with its label and what was found in it.

  Attributes:
    image: as stored, uint8 or uint16.
    label: see `LabelSpec`.
    found: see `PlaceAnswers.find`.
  """

  image: UInt[np.ndarray, "s s c"]
  label: np.ndarray
  found: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PlaceAnswers(abc.ABC):
  """What was found in the images that could be read.

  Attributes:
    results: of the evaluation, see `training.evaluator.evaluate`.
    summaries: of each image, see `summarize`.
    worst: row -> image, for the first 12 of `worst_first`.
    index: place of each image in the source.
    class_names: names of the K classes.
    name: returns the name of the image at a place of the source.
  """

  results: dict[str, float]
  summaries: Sequence[Any]
  worst: Mapping[int, Example]
  index: Int[np.ndarray, " n"]
  class_names: tuple[str, ...]
  name: Callable[[int], str]

  @staticmethod
  @abc.abstractmethod
  def find(task: Any, outputs: Any, labels: Array) -> dict[str, Array]:
    """Returns what was found in a batch; traced."""

  @staticmethod
  @abc.abstractmethod
  def summarize(example: Example, num_classes: int) -> Any:
    """Returns the few numbers that are kept of every image."""

  @staticmethod
  @abc.abstractmethod
  def quality(summary: Any) -> float:
    """Returns how well an image's label was found; higher is better."""

  @functools.cached_property
  def worst_first(self) -> list[int]:
    """All rows, those of the lowest quality first."""
    found = [self.quality(summary) for summary in self.summaries]
    return sorted(range(len(found)), key=lambda row: (found[row], row))


class MaskAnswers(PlaceAnswers):
  """Predicted masks.

  A summary is int64 [3, K]: how many pixels of each class are right, how many have the
  class as their label, and how many as their prediction. Ignored pixels do not count.
  """

  @staticmethod
  def find(task: Any, outputs: Any, labels: Array) -> dict[str, Array]:
    """Returns the most probable class of each pixel, "classes", uint8 [B, S, S]."""
    del task, labels
    return {"classes": outputs["out"].argmax(-1).astype(np.uint8)}

  @staticmethod
  def summarize(example: Example, num_classes: int) -> Int[np.ndarray, "3 k"]:
    """Counts the pixels."""
    label, found = example.label, example.found["classes"]
    counted = label < num_classes
    parts = label[label == found], label[counted], found[counted]
    return np.stack([np.bincount(part, minlength=num_classes) for part in parts])

  @staticmethod
  def quality(summary: Int[np.ndarray, "3 k"]) -> float:
    """Returns the image's mean IoU; infinity, the last, if all pixels are ignored."""
    return float(np.nanmean(ious_of_counts(*summary))) if summary.any() else math.inf


class BoxAnswers(PlaceAnswers):
  """Detections. A summary is the `Matches` of an image."""

  @staticmethod
  def find(task: Any, outputs: Any, labels: Array) -> dict[str, Array]:
    """Returns `Detection.found`."""
    found: dict[str, Array] = task.found(outputs, labels)
    return found

  @staticmethod
  def summarize(example: Example, num_classes: int) -> Matches:
    """Compares the detections with the true boxes."""
    del num_classes
    names = "boxes", "scores", "classes", "true"
    return match_found(*(example.found[name] for name in names))

  @staticmethod
  def quality(summary: Matches) -> float:
    """Returns the number of mistakes, negative."""
    return -sum(mistakes(summary))


def mistakes(matches: Matches) -> tuple[int, int]:
  """Returns the numbers of true boxes that were missed, and of wrong detections.

  Detections with a probability of at least `LOWEST_SCORE` count. They are right if
  their overlap (IoU) with a true box of their class is at least 0.5.
  """
  count = int((matches.scores >= LOWEST_SCORE).sum())  # The highest scores come first.
  right = int(matches.found[0, :count].sum())
  ignored = int(matches.ignored[0, :count].sum())
  return len(matches.truths) - right, count - right - ignored


def collect_places(
  prepared: Prepared, kind: type[PlaceAnswers], class_names: tuple[str, ...]
) -> PlaceAnswers:
  """Finds masks or boxes in all images of an evaluation, on all devices and hosts.

  The answers are the same in each process. Of the images themselves, only the worst are
  kept in memory.

  Args:
    prepared: the network and the images.
    kind: of the answers.
    class_names: names of the K classes.

  Raises:
    UserError: see `Detection.results`.
    FloatingPointError: a result is not finite.
  """
  task = prepared.experiment.task
  total: HostMetrics | None = None
  summaries: list[Any] = []
  index: list[int] = []
  worst: list[tuple[float, int, Example]] = []
  collected: list[Mapping[str, np.ndarray]] = []
  first = 0
  for metrics, batch, found in _batches(prepared, kind):
    sums = to_host(metrics)
    total = add_metrics(total, sums) if total else sums
    for place in np.flatnonzero(batch["mask"]).tolist():
      # A view would keep the whole batch in memory.
      own = {name: array[place].copy() for name, array in found.items()}
      image, label = (batch[name][place].copy() for name in ("image", "label"))
      example = Example(image, label, own)
      summary = kind.summarize(example, task.num_classes)
      worst.append((kind.quality(summary), len(summaries), example))
      summaries.append(summary)
      index.append(first + place)
      if hasattr(task, "found"):
        collected.append(own)
    worst = sorted(worst, key=lambda one: one[:2])[:MOST_EXAMPLES]
    first += len(batch["mask"])
  assert total is not None  # No split is empty.
  joined = None
  if collected:
    joined = {name: np.stack([x[name] for x in collected]) for name in collected[0]}
  return kind(
    check_results(results_of(task, total, joined)),
    summaries,
    {row: example for _, row, example in worst},
    np.array(index),
    class_names,
    prepared.source.name,
  )


def _batches(
  prepared: Prepared, kind: type[PlaceAnswers]
) -> Iterator[tuple[Metrics, dict[str, Any], dict[str, Any]]]:
  """Yields the sums of each batch, the batch, and what was found, both on the host."""
  experiment = prepared.experiment
  task, take_batch = experiment.task, experiment.eval_data.take_batch
  model = folded_model(experiment.model)
  normalize = create_normalize(experiment.config.data)

  def run(
    variables: Variables, feed: Any, number: Array
  ) -> tuple[Metrics, Batch, dict[str, Array]]:
    batch = take_batch(feed, number)
    outputs = model.apply(variables, normalize(batch["image"]), train=False)
    found = kind.find(task, outputs, batch["label"])
    return compute_metrics(task, outputs, batch), batch, found

  whole = compiled(experiment, run)
  variables = jax.device_put(prepared.variables, replicated(experiment.mesh))
  variables = experiment.fold(variables)
  for feed, count in experiment.eval_data.eval_chunks():
    for number in range(count):
      metrics, *rest = whole(variables, feed, number)
      yield metrics, *jax.device_get(rest)
