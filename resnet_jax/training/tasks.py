"""Tasks: what a network is trained for, as targets, a loss per example and metrics.

`task_metrics.py` sums metrics over the valid examples, so that they can be added over
batches, devices and hosts. Letters: B batch, K outputs.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.config.factories import call_factory
from resnet_jax.config.schema import Config
from resnet_jax.data.labels import LabelSpec
from resnet_jax.runs.time_shares import KEYS as TIME_KEYS
from resnet_jax.runtime.arrays import Array, Bool, Float32, Int, Shaped
from resnet_jax.runtime.errors import UserError
from resnet_jax.training import losses
from resnet_jax.training.dense_tasks import Detection, Segmentation
from resnet_jax.training.losses import Loss

# Names that the log of a run uses besides the metrics of a task.
RESERVED = {
  *("loss", "count", "skipped_updates", "skipped"),
  *("step", "epoch", "split", "learning_rate"),
  *TIME_KEYS,
}


@runtime_checkable
class Task(Protocol):
  """What a network is trained for. JAX traces these methods inside the compiled step.

  It may also have:

  - `label`, the `LabelSpec` of one image, if that is not a class.
  - `outputs`, the shapes of the network's outputs for one image: a tuple, or a dict of
    tuples, if that is not (num_classes,). None is a size that depends on the image. The
    network may return more.
  - `results(sums, found)`, which is not traced: metrics of all examples together, as
    floats by name. `sums` has the sums of loss and metrics as numpy arrays, and `found`
    is None except in an evaluation.
  - `found(outputs, labels)`: arrays [B, ...] by name, which an evaluation collects from
    all examples for `results`, if sums are not enough.

  Attributes:
    num_classes: K, the number of outputs of the network.
    best_metric: the metric that chooses the best checkpoint; more is better.
  """

  @property
  def num_classes(self) -> int: ...

  @property
  def best_metric(self) -> str: ...

  def targets(self, labels: Shaped[Array, "b ..."]) -> Float32[Array, "b ..."]:
    """Turns labels into targets, which mixup may average."""

  def loss(
    self, logits: Any, targets: Float32[Array, "b ..."], train: bool
  ) -> Float32[Array, " b"]:
    """Returns the loss of each example, to be minimised.

    Args:
      logits: the network's outputs, float32 [B, K] or as in `outputs`.
      targets: from `targets`, perhaps mixed.
      train: True if the loss is minimised, False if an evaluation reports it.
    """

  def metrics(
    self, logits: Any, labels: Shaped[Array, "b ..."]
  ) -> dict[str, Shaped[Array, "b ..."]]:
    """Returns further values per example, by name: fractions, bools or any numbers.

    They may have further axes if the task has `results`.
    """


@dataclasses.dataclass(frozen=True)
class Classification:
  """One class for each image: cross-entropy, top-1 and, for K > 5, top-5.

  Attributes:
    num_classes: K.
    label_smoothing: probability spread evenly over all classes in training (Szegedy et
      al. 2015, section 7).
    loss_of: a function of `losses.py`: (logits, targets) -> loss of each example.
    class_weights: factor of the loss of each class in training; () is 1.
    logit_offsets: added to the logits in training; () is 0.
  """

  num_classes: int
  label_smoothing: float = 0.0
  best_metric: str = "top1"
  loss_of: Loss = losses.softmax
  class_weights: tuple[float, ...] = ()
  logit_offsets: tuple[float, ...] = ()

  def targets(self, labels: Int[Array, " b"]) -> Float32[Array, "b {self.num_classes}"]:
    """Returns probabilities."""
    return jax.nn.one_hot(labels, self.num_classes)

  def loss(
    self, logits: Float32[Array, "b k"], targets: Float32[Array, "b k"], train: bool
  ) -> Float32[Array, " b"]:
    """Returns the loss in training, and the cross-entropy in nats in evaluation."""
    chex.assert_equal_shape([logits, targets])
    chex.assert_type([logits, targets], jnp.float32)
    if not train:
      return losses.softmax(logits, targets)
    # A mixed image has the weight of its mixture of classes.
    weights = targets @ jnp.array(self.class_weights) if self.class_weights else 1.0
    targets = optax.smooth_labels(targets, self.label_smoothing)
    if self.logit_offsets:
      logits += jnp.array(self.logit_offsets)[None]
    return weights * self.loss_of(logits, targets)

  def metrics(
    self, logits: Float32[Array, "b {self.num_classes}"], labels: Int[Array, " b"]
  ) -> dict[str, Bool[Array, " b"]]:
    """Returns whether the label is the highest logit, and among the highest five."""
    values = {"top1": logits.argmax(-1) == labels}
    if self.num_classes > 5:
      # Comparisons, because `top_k` would gather all logits on all devices. Ties go to
      # the first class, as in `top_k`.
      own = jnp.take_along_axis(logits, labels[:, None], axis=1)
      earlier = jnp.arange(self.num_classes)[None] < labels[:, None]
      better = (logits > own) | ((logits == own) & earlier)
      values["top5"] = better.sum(-1) < 5
    return values


@dataclasses.dataclass(frozen=True)
class MultiLabel:
  """Any number of classes for each image: a sigmoid for each class.

  Attributes:
    num_classes: K.
    label_smoothing: targets are moved from 0 and 1 towards 1/2 by half of it.
    loss_of: a function of `losses.py`: (logits, targets) -> loss of each example.
  """

  num_classes: int
  label_smoothing: float = 0.0
  best_metric: str = "sample_f1"
  loss_of: Loss = losses.several_binary

  @property
  def label(self) -> LabelSpec:
    """Whether the image has each class."""
    return LabelSpec.of("classes", self.num_classes)

  def targets(self, labels: Bool[Array, "b k"]) -> Float32[Array, "b k"]:
    """Returns the probability of each class."""
    return labels.astype(jnp.float32)

  def loss(
    self, logits: Float32[Array, "b k"], targets: Float32[Array, "b k"], train: bool
  ) -> Float32[Array, " b"]:
    """Returns the loss in training, and the binary cross-entropy in evaluation."""
    if not train:
      return losses.several_binary(logits, targets)
    smoothing = self.label_smoothing
    return self.loss_of(logits, targets * (1 - smoothing) + smoothing / 2)

  def metrics(
    self, logits: Float32[Array, "b k"], labels: Bool[Array, "b k"]
  ) -> dict[str, Shaped[Array, " b"]]:
    """Returns the scores of the classes with a probability above 1/2.

    "sample_f1" is the F1 of the classes of each image, and 1 if it rightly has none;
    "exact" is whether all classes are right.
    """
    found = logits > 0
    hits, size = (found & labels).sum(axis=-1), found.sum(-1) + labels.sum(-1)
    f1 = jnp.where(size > 0, 2 * hits / jnp.maximum(size, 1), 1.0)
    return {"sample_f1": f1, "exact": (found == labels).all(axis=-1)}


@dataclasses.dataclass(frozen=True)
class Regression:
  """One or several numbers for each image; the network learns them standardised.

  Attributes:
    num_classes: K, the count of numbers.
    mean: of each number in training.
    std: of each number in training.
    loss_of: a function of `losses.py`: (outputs, targets) -> loss of each example.
  """

  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  best_metric: str = "skill"
  loss_of: Loss = losses.regression

  @property
  def label(self) -> LabelSpec:
    """The numbers."""
    return LabelSpec.of("numbers", self.num_classes)

  def targets(self, labels: Float32[Array, "b k"]) -> Float32[Array, "b k"]:
    """Returns standardised numbers."""
    return (labels - jnp.array(self.mean)[None]) / jnp.array(self.std)[None]

  def loss(
    self, logits: Float32[Array, "b k"], targets: Float32[Array, "b k"], train: bool
  ) -> Float32[Array, " b"]:
    """Returns the loss in training; the squared error in evaluation. Standardised."""
    return (self.loss_of if train else losses.regression)(logits, targets)

  def metrics(
    self, logits: Float32[Array, "b k"], labels: Float32[Array, "b k"]
  ) -> dict[str, Float32[Array, " b"]]:
    """Returns "mae", in the units of the labels, and "skill".

    The mean of "skill" over all images is 1 - MSE / MSE of the mean of the training
    labels: 1 is perfect, and 0 is as good as that constant.
    """
    error = jnp.abs(logits - self.targets(labels))
    mae = (error * jnp.array(self.std)[None]).mean(axis=-1)
    return {"mae": mae, "skill": 1 - jnp.square(error).mean(axis=-1)}


def create_task(
  config: Config, model: Any = None, image_size: tuple[int, int] | None = None
) -> Task:
  """Returns the task that a config names.

  Args:
    config: `model.num_classes` must be set.
    model: the network, of which a detector's anchors are used.
    image_size: height and width of the images, to which the anchors belong; None is the
      square of `data.image_size`.
  """
  if config.task:
    task: Task = call_factory(config.task, "task", config, returns=(Task,))
    return task
  loss, count, kind = config.loss, config.model.num_classes, config.data.labels
  if kind == "mask":
    return Segmentation(count)
  if kind == "boxes":
    if not hasattr(model, "anchors"):
      raise UserError(
        f"config.data.labels='boxes' needs a detector, such as `RetinaNet`, not "
        f"{type(model).__name__}"
      )
    size = image_size or (config.data.image_size, config.data.image_size)
    box_loss = getattr(model, "box_loss", "l1")
    return Detection(count, model.anchors(size), size, box_loss)
  for name in ("class_weights", "class_counts", "target_mean", "target_std"):
    if (given := len(getattr(loss, name))) not in (0, count):
      raise UserError(
        f"config.loss.{name} has {given} values, but there are {count} "
        f"{'numbers' if kind == 'numbers' else 'classes'}; give one for each"
      )
  loss_of, smoothing = losses.create_loss(loss, kind), config.optim.label_smoothing
  if kind == "classes":
    return MultiLabel(count, smoothing, loss_of=loss_of)
  if kind == "numbers":
    mean, std = loss.target_mean, loss.target_std
    return Regression(count, mean, std, loss_of=loss_of)
  weights, shares = loss.class_weights, np.array(loss.class_counts, np.float64)
  shares /= shares.sum() or 1
  if loss.class_weighting and not weights:
    weights = tuple((1 / (count * shares)).tolist())
  offsets = loss.logit_adjustment * np.log(shares)
  return Classification(
    count,
    smoothing,
    loss_of=loss_of,
    class_weights=weights,
    logit_offsets=tuple(offsets.tolist()) if loss.logit_adjustment else (),
  )


def label_of(task: Task) -> LabelSpec:
  """Returns the label of one image."""
  default = LabelSpec.of("class", task.num_classes)
  label: LabelSpec = getattr(task, "label", default)
  return label


def outputs_of(task: Task) -> Any:
  """Returns the shapes of the network's float32 outputs for one image."""
  return getattr(task, "outputs", (task.num_classes,))
