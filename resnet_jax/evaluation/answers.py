"""The outputs of a network for every image of a split.

Shapes: N images, B batch, K classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from resnet_jax import kernels
from resnet_jax.data.batch import Batch
from resnet_jax.data.batches.preprocess import create_normalize
from resnet_jax.evaluation.views import Views
from resnet_jax.models.folding import folded_model
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array, Bool, Float32, Float64, Int
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import replicated
from resnet_jax.training.evaluator import Prepared
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.tasks import Classification


@dataclasses.dataclass(frozen=True)
class Answers:
  """The outputs of a network, or of several, for the images that could be read.

  Attributes:
    logits: of each image; their softmax is the probabilities.
    labels: the right class of each image.
    index: place of each image in the source.
    class_names: in the order of the logits.
    name: returns the name of the image at a place of the source.
  """

  logits: Float32[np.ndarray, "n k"]
  labels: Int[np.ndarray, " n"]
  index: Int[np.ndarray, " n"]
  class_names: tuple[str, ...]
  name: Callable[[int], str]

  @property
  def log_probabilities(self) -> Float64[np.ndarray, "n k"]:
    """The log-softmax of the logits."""
    found: np.ndarray = log_softmax(self.logits.astype(np.float64), axis=1)
    return found

  @property
  def ranks(self) -> Int[np.ndarray, " n"]:
    """Number of classes before the right one; of equal logits, the first comes first.

    This is the order of `Classification.metrics`.
    """
    own = np.take_along_axis(self.logits, self.labels[:, None], axis=1)
    earlier = np.arange(self.logits.shape[1])[None] < self.labels[:, None]
    before = (self.logits > own) | ((self.logits == own) & earlier)
    ranks: np.ndarray = before.sum(axis=1)
    return ranks

  def with_logits(self, logits: np.ndarray) -> "Answers":
    """Returns the answers of another network for the same images."""
    return dataclasses.replace(self, logits=logits)


def has_answers(experiment: Experiment) -> bool:
  """Whether the task of an experiment is one of `collect`."""
  return isinstance(experiment.task, Classification)


def collect(prepared: Prepared, views: Views | None = None) -> Answers:
  """Computes the outputs for all images of an evaluation, on all devices and hosts.

  The outputs are the same in each process.

  Args:
    prepared: the network and the images.
    views: the views of each image, whose probabilities are averaged; None is the usual
      one.

  Raises:
    UserError: the task is not classification, the views do not fit the images, or an
      image cannot be read.
  """
  views = views or Views()
  experiment = prepared.experiment
  if not has_answers(experiment):
    raise UserError(
      f"a report needs a task of classes, not {type(experiment.task).__name__}"
    )
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
    passes.append(_run(one, prepared.variables, partial(views.of, crop=crop)))
  logits, labels, index = zip(*passes, strict=True)
  names = prepared.class_names or tuple(prepared.source.class_names)
  count = experiment.task.num_classes
  names += tuple(f"class {i}" for i in range(len(names), count))
  return Answers(average(logits), labels[0], index[0], names, prepared.source.name)


def average(logits: Sequence[Float32[np.ndarray, "n k"]]) -> Float32[np.ndarray, "n k"]:
  """Returns logits whose softmax is the average of the given ones' softmax."""
  if len(logits) == 1:
    return logits[0]
  total = np.logaddexp.reduce([log_softmax(x.astype(np.float64), 1) for x in logits])
  averaged: np.ndarray = total.astype(np.float32)
  return averaged


def _run(
  experiment: Experiment,
  variables: Variables,
  views_of: Callable[[Array], list[Array]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns logits, labels and index of all images that can be read."""
  model = folded_model(experiment.model)
  normalize = create_normalize(experiment.config.data)
  take_batch: Callable[..., Batch] = experiment.eval_data.take_batch

  def run(
    variables: Variables, feed: Any, number: Int[Array, ""]
  ) -> tuple[Float32[Array, "b k"], Int[Array, " b"], Bool[Array, " b"]]:
    batch = take_batch(feed, number)
    found: list[Array] = []
    for view in views_of(batch["image"]):
      images = normalize(view)
      outputs: Any = model.apply(variables, images, train=False)
      found.append(outputs)
    logits = found[0]
    if len(found) > 1:
      stacked = jnp.stack([jax.nn.log_softmax(x) for x in found])
      logits = jax.nn.logsumexp(stacked, axis=0)
    return logits, batch["label"], batch["mask"]

  compiled = compilation.jit(
    kernels.traced_with(experiment.kernels, run),
    dtype=experiment.config.model.dtype,
    out_shardings=replicated(experiment.mesh),
  )
  placed = jax.device_put(variables, replicated(experiment.mesh))
  folded = experiment.fold(placed)
  parts = [
    jax.device_get(compiled(folded, feed, number))
    for feed, count in experiment.eval_data.eval_chunks()
    for number in range(count)
  ]
  logits, labels, mask = (np.concatenate(x) for x in zip(*parts, strict=True))
  return logits[mask], labels[mask], np.flatnonzero(mask)
