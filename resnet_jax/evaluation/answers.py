"""The outputs of a network for every image of a split.

Shapes: N images, B batch, K classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy.special import expit, log_softmax, logit

from resnet_jax.evaluation.corruptions import Corrupt
from resnet_jax.evaluation.passes import create_pass
from resnet_jax.evaluation.places import (
  BoxAnswers,
  MaskAnswers,
  PlaceAnswers,
  collect_places,
)
from resnet_jax.evaluation.views import Views
from resnet_jax.runtime.arrays import (
  Bool,
  Float32,
  Float64,
  Int,
  Shaped,
)
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.dense_tasks import Detection, Segmentation
from resnet_jax.training.evaluator import Prepared
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.tasks import Classification, MultiLabel, Regression
from resnet_jax.weights import all_class_names

AnyOutputs = TypeVar("AnyOutputs", bound="Outputs")
_OF_PLACES: dict[type, type[PlaceAnswers]] = {
  Segmentation: MaskAnswers,
  Detection: BoxAnswers,
}


@dataclasses.dataclass(frozen=True)
class Outputs:
  """The outputs of a network, or of several, for the images that could be read.

  Attributes:
    logits: of each image.
    labels: of each image, see `LabelSpec`.
    index: place of each image in the source.
    class_names: names of the outputs.
    name: returns the name of the image at a place of the source.
  """

  logits: Float32[np.ndarray, "n k"]
  labels: Shaped[np.ndarray, "n ..."]
  index: Int[np.ndarray, " n"]
  class_names: tuple[str, ...]
  name: Callable[[int], str]

  def with_logits(self: AnyOutputs, logits: np.ndarray) -> AnyOutputs:
    """Returns the outputs of another network for the same images."""
    return dataclasses.replace(self, logits=logits)

  def calibrated(self: AnyOutputs, **values: Any) -> AnyOutputs:
    """Returns the outputs with the values of `classifier.read_calibration`."""
    return dataclasses.replace(self, **values)

  @staticmethod
  def average(logits: Sequence[Float32[np.ndarray, "n k"]]) -> np.ndarray:
    """Returns the logits that stand for the average answer of several networks."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Answers(Outputs):
  """The outputs for images of one class each: their softmax is the probabilities."""

  @functools.cached_property
  def predictions(self) -> Int[np.ndarray, " n"]:
    """The class with the highest logit; of equal logits, the first one."""
    found: np.ndarray = self.logits.argmax(axis=1)
    return found

  @functools.cached_property
  def log_probabilities(self) -> Float64[np.ndarray, "n k"]:
    """The log-softmax of the logits."""
    found: np.ndarray = log_softmax(self.logits.astype(np.float64), axis=1)
    return found

  @functools.cached_property
  def ranks(self) -> Int[np.ndarray, " n"]:
    """Number of classes before the right one; of equal logits, the first comes first.

    This is the order of `Classification.metrics`.
    """
    own = np.take_along_axis(self.logits, self.labels[:, None], axis=1)
    earlier = np.arange(self.logits.shape[1])[None] < self.labels[:, None]
    before = (self.logits > own) | ((self.logits == own) & earlier)
    ranks: np.ndarray = before.sum(axis=1)
    return ranks

  @staticmethod
  def average(logits: Sequence[Float32[np.ndarray, "n k"]]) -> np.ndarray:
    """Returns logits whose softmax is the average of the given ones' softmax."""
    total = np.logaddexp.reduce([log_softmax(x.astype(np.float64), 1) for x in logits])
    averaged: np.ndarray = total.astype(np.float32)
    return averaged

  def calibrated(self, **values: Any) -> "Answers":
    """Returns the answers with the logits divided by `temperature`."""
    return self.with_logits(self.logits / np.float32(values["temperature"]))


@dataclasses.dataclass(frozen=True)
class SetAnswers(Outputs):
  """The outputs for images of several classes each: a sigmoid for each class.

  Attributes:
    thresholds: a class is predicted if its probability is at least this, for each
      class; () is 1/2.
  """

  thresholds: tuple[float, ...] = ()

  @property
  def limits(self) -> Float64[np.ndarray, " k"]:
    """The threshold of each class."""
    return np.array(self.thresholds or [0.5] * self.logits.shape[1], np.float64)

  @functools.cached_property
  def probabilities(self) -> Float64[np.ndarray, "n k"]:
    """The sigmoid of the logits."""
    found: np.ndarray = expit(self.logits.astype(np.float64))
    return found

  @functools.cached_property
  def predictions(self) -> Bool[np.ndarray, "n k"]:
    """Whether each class is predicted."""
    found: np.ndarray = self.probabilities >= self.limits
    return found

  @staticmethod
  def average(logits: Sequence[Float32[np.ndarray, "n k"]]) -> np.ndarray:
    """Returns logits whose sigmoid is the average of the given ones' sigmoid."""
    mean = np.stack([expit(x.astype(np.float64)) for x in logits]).mean(axis=0)
    averaged: np.ndarray = logit(mean).astype(np.float32)
    return averaged


@dataclasses.dataclass(frozen=True)
class NumberAnswers(Outputs):
  """The outputs for images that are labelled with numbers, standardised.

  Attributes:
    mean: of each number in training.
    std: of each number in training.
  """

  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)

  @functools.cached_property
  def predictions(self) -> Float64[np.ndarray, "n k"]:
    """The numbers, in the units of the labels."""
    found: np.ndarray = self.logits * np.array(self.std) + np.array(self.mean)
    return found

  @staticmethod
  def average(logits: Sequence[Float32[np.ndarray, "n k"]]) -> np.ndarray:
    """Returns the mean."""
    averaged: np.ndarray = np.stack(logits).mean(axis=0, dtype=np.float64)
    return averaged.astype(np.float32)


def has_answers(experiment: Experiment) -> bool:
  """Whether the task of an experiment is one of `collect`."""
  return isinstance(experiment.task, Classification | MultiLabel | Regression)


def has_report(experiment: Experiment) -> bool:
  """Whether the task of an experiment is one of `answers_for_report`."""
  return has_answers(experiment) or isinstance(experiment.task, (*_OF_PLACES,))


def answers_for_report(prepared: Prepared) -> "Outputs | PlaceAnswers":
  """Computes what `write_report` shows, for any task of this package.

  Raises:
    UserError: see `collect` and `collect_places`.
    FloatingPointError: see `collect_places`.
  """
  for task, kind in _OF_PLACES.items():
    if isinstance(prepared.experiment.task, task):
      return collect_places(prepared, kind, _names(prepared))
  return collect(prepared)


def _names(prepared: Prepared) -> tuple[str, ...]:
  return all_class_names(
    prepared.class_names or tuple(prepared.source.class_names),
    prepared.experiment.task.num_classes,
  )


def _kind_of(experiment: Experiment) -> Callable[..., Outputs]:
  """Returns the class of the answers of a task."""
  task = experiment.task
  if isinstance(task, Regression):
    return functools.partial(NumberAnswers, mean=task.mean, std=task.std)
  return SetAnswers if isinstance(task, MultiLabel) else Answers


def collect(
  prepared: Prepared,
  views: Views | None = None,
  corrupt: Corrupt | None = None,
  engine: str = "jax",
) -> Outputs:
  """Computes the outputs for all images of an evaluation, on all devices and hosts.

  The outputs are the same in each process.

  Args:
    prepared: the network and the images.
    views: the views of each image, whose probabilities are averaged; None is the usual
      one.
    corrupt: changes the images on the host, after they are resized and cropped, and
      before crops of `views` are taken. It gets [B, H, W, C] uint8 and the place of
      the first one in the source; it need not be the same B at each call.
    engine: computes the outputs, see `engines.py`. Others than "jax" compute on the
      CPU.

  Raises:
    UserError: the task is the user's own, the views do not fit the images, or an image
      cannot be read.
  """
  return collector(prepared, views, engine)(corrupt)


def collector(
  prepared: Prepared, views: Views | None = None, engine: str = "jax"
) -> Callable[[Corrupt | None], Outputs]:
  """Returns `collect` as a function of `corrupt`, which compiles at most once.

  Raises:
    UserError: as in `collect`.
  """
  views = views or Views()
  experiment = prepared.experiment
  if not has_answers(experiment):
    raise UserError(
      f"a report needs a task of this package, not {type(experiment.task).__name__}"
    )
  kind = _kind_of(experiment)
  config, crop = experiment.config, experiment.config.data.eval_crop
  passes = []
  for data in views.data_of_passes(config.data):
    one = experiment
    if data != config.data:
      one = Experiment.create(
        dataclasses.replace(config, data=data),
        devices=list(experiment.mesh.devices.flat),
        model=experiment.model,
        eval_data=prepared.source,
        class_names=(),
      )
    passes.append(
      create_pass(
        one, prepared.variables, functools.partial(views.of, crop=crop), engine
      )
    )
  names = _names(prepared)

  def run(corrupt: Corrupt | None = None) -> Outputs:
    found = [one_pass(corrupt) for one_pass in passes]
    logits, labels, index = zip(*found, strict=True)
    one = kind(logits[0][0], labels[0], index[0], names, prepared.source.name)
    return average([one.with_logits(x) for views in logits for x in views])

  return run


def average(answers: Sequence[AnyOutputs]) -> AnyOutputs:
  """Returns the average of the answers of several networks for the same images."""
  first, *others = answers
  if not others:
    return first
  return first.with_logits(first.average([each.logits for each in answers]))
