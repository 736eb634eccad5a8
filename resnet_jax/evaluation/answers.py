"""The outputs of a network for every image of a split.

Shapes: N images, B batch, K classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from resnet_jax import kernels
from resnet_jax.data.batch import Batch
from resnet_jax.data.batches.preprocess import create_normalize
from resnet_jax.evaluation.corruptions import Corrupt
from resnet_jax.evaluation.views import Views
from resnet_jax.models.folding import folded_model
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array, Bool, Float32, Float64, Int, UInt8
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import batch_sharding, replicated
from resnet_jax.training.evaluator import Prepared
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.tasks import Classification
from resnet_jax.weights import all_class_names


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

  def with_logits(self, logits: np.ndarray) -> "Answers":
    """Returns the answers of another network for the same images."""
    return dataclasses.replace(self, logits=logits)

  def at_temperature(self, temperature: float) -> "Answers":
    """Returns the answers with the logits divided by a temperature."""
    return self.with_logits(self.logits / np.float32(temperature))


def has_answers(experiment: Experiment) -> bool:
  """Whether the task of an experiment is one of `collect`."""
  return isinstance(experiment.task, Classification)


def collect(
  prepared: Prepared, views: Views | None = None, corrupt: Corrupt | None = None
) -> Answers:
  """Computes the outputs for all images of an evaluation, on all devices and hosts.

  The outputs are the same in each process.

  Args:
    prepared: the network and the images.
    views: the views of each image, whose probabilities are averaged; None is the usual
      one.
    corrupt: changes the images on the host, after they are resized and cropped, and
      before crops of `views` are taken. It gets [B, H, W, C] uint8 and the place of
      the first one in the source; it need not be the same B at each call.

  Raises:
    UserError: the task is not classification, the views do not fit the images, or an
      image cannot be read.
  """
  return collector(prepared, views)(corrupt)


def collector(
  prepared: Prepared, views: Views | None = None
) -> Callable[[Corrupt | None], Answers]:
  """Returns `collect` as a function of `corrupt`, which compiles at most once.

  Raises:
    UserError: as in `collect`.
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
    passes.append(
      _pass(one, prepared.variables, functools.partial(views.of, crop=crop))
    )
  names = all_class_names(
    prepared.class_names or tuple(prepared.source.class_names),
    experiment.task.num_classes,
  )

  def run(corrupt: Corrupt | None = None) -> Answers:
    found = [one_pass(corrupt) for one_pass in passes]
    logits, labels, index = zip(*found, strict=True)
    return Answers(average(logits), labels[0], index[0], names, prepared.source.name)

  return run


def average(logits: Sequence[Float32[np.ndarray, "n k"]]) -> Float32[np.ndarray, "n k"]:
  """Returns logits whose softmax is the average of the given ones' softmax."""
  if len(logits) == 1:
    return logits[0]
  total = np.logaddexp.reduce([log_softmax(x.astype(np.float64), 1) for x in logits])
  averaged: np.ndarray = total.astype(np.float32)
  return averaged


def _pass(
  experiment: Experiment,
  variables: Variables,
  views_of: Callable[[Array], list[Array]],
) -> Callable[[Corrupt | None], tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Returns a function that gives logits, labels and index of all readable images."""
  model = folded_model(experiment.model)
  normalize = create_normalize(experiment.config.data)
  take_batch: Callable[..., Batch] = experiment.eval_data.take_batch

  def forward(
    variables: Variables, pixels: UInt8[Array, "b h w c"]
  ) -> Float32[Array, "b k"]:
    found: list[Array] = []
    for view in views_of(pixels):
      images = normalize(view)
      outputs: Any = model.apply(variables, images, train=False)
      found.append(outputs)
    logits = found[0]
    if len(found) > 1:
      stacked = jnp.stack([jax.nn.log_softmax(x) for x in found])
      logits = jax.nn.logsumexp(stacked, axis=0)
    return logits

  def run(
    variables: Variables, feed: Any, number: Int[Array, ""]
  ) -> tuple[Float32[Array, "b k"], Int[Array, " b"], Bool[Array, " b"]]:
    batch = take_batch(feed, number)
    return forward(variables, batch["image"]), batch["label"], batch["mask"]

  def compiled(function: Callable[..., Any]) -> jax.stages.Wrapped:
    return compilation.jit(
      kernels.traced_with(experiment.kernels, function),
      dtype=experiment.config.model.dtype,
      out_shardings=replicated(experiment.mesh),
    )

  # A function that is not called is not compiled.
  whole, take, rest = compiled(run), compiled(take_batch), compiled(forward)
  placed = jax.device_put(variables, replicated(experiment.mesh))
  folded = experiment.fold(placed)

  def corrupted(feed: Any, number: int, first: int, corrupt: Corrupt) -> Any:
    batch = jax.device_get(take(feed, number))

    def rows(index: Any) -> np.ndarray:  # Those of one device.
      start, end, _ = index[0].indices(len(batch["image"]))
      return corrupt(batch["image"][start:end], first + start)

    shape, split = batch["image"].shape, batch_sharding(experiment.mesh)
    images = jax.make_array_from_callback(shape, split, rows)
    return jax.device_get(rest(folded, images)), batch["label"], batch["mask"]

  def answer(
    corrupt: Corrupt | None,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts, first = [], 0
    for feed, count in experiment.eval_data.eval_chunks():
      for number in range(count):
        if corrupt is None:
          parts.append(jax.device_get(whole(folded, feed, number)))
        else:
          parts.append(corrupted(feed, number, first, corrupt))
        first += len(parts[-1][0])
    logits, labels, mask = (np.concatenate(x) for x in zip(*parts, strict=True))
    return logits[mask], labels[mask], np.flatnonzero(mask)

  return answer
