"""Everything that is built from a config, each part once.

The trainer, the evaluator, the dry run and the studies all start from an `Experiment`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh

from resnet_jax import kernels
from resnet_jax.config.factories import import_factory
from resnet_jax.config.plan import Plan
from resnet_jax.config.schema import Config
from resnet_jax.config.validation import validate
from resnet_jax.data import Dataset
from resnet_jax.data.batches.mixup_cutmix import mix
from resnet_jax.data.batches.preprocess import create_preprocess
from resnet_jax.data.pipelines.opening import create_dataset
from resnet_jax.models.folding import fold_batch_norm, folded_model
from resnet_jax.models.registry import (
  build_model,
  create_model,
  with_fields,
  with_frozen,
)
from resnet_jax.models.variables import Change
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import PRNGKeyArray
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import (
  count_norm_groups,
  create_mesh,
  fill_devices,
  replicated,
  split_over_devices,
  split_updates,
)
from resnet_jax.training import steps
from resnet_jax.training.batch_stats import create_refresh
from resnet_jax.training.optimizer import create_optimizer, create_schedule
from resnet_jax.training.state import StateInit, TrainState
from resnet_jax.training.tasks import Classification, Task

Devices = Sequence[jax.Device]


@dataclasses.dataclass(eq=False)
class Experiment:
  """One experiment: all parts of it that the settings describe, or one's own.

  A part is made when it is first used, and then kept. Make one by `create`.

  Attributes:
    config: checked, and resolved: the number of classes, the dtype and the kernels are
      those that are used.
    mesh: the devices.
    model: the network, with batch norm over the devices that `config.bn_scope` names.
    task: what it is trained for.
    class_names: of the network's outputs, in order; () if they are not known; None
      takes them from the training images.
  """

  config: Config
  mesh: Mesh
  model: nn.Module
  task: Task
  class_names: Sequence[str] | None
  _parts: Mapping[str, Any]

  @classmethod
  def create(
    cls,
    config: Config,
    *,
    devices: Devices | None = None,
    model: nn.Module | None = None,
    task: Task | None = None,
    optimizer: optax.GradientTransformation | None = None,
    train_data: Dataset | None = None,
    eval_data: Dataset | None = None,
    class_names: Sequence[str] | None = None,
  ) -> "Experiment":
    """Checks settings, and makes what is needed for any use of them.

    The training images are opened here if only they tell the number of classes.

    Args:
      config: the settings; this function changes no object that it is given.
      devices: to compute on; None is all of them.
      model: an own network, in place of `config.model`: any Flax module that is called
        as `model.apply(variables, images, train=...)` and gives logits [B, K] float32.
      task: an own task, in place of `config.task`.
      optimizer: an own optimiser, in place of `config.optim`.
      train_data: own training images, in place of `config.data`.
      eval_data: own images for evaluation, in place of `config.data`.
      class_names: see `Experiment`.

    Raises:
      UserError: settings that are wrong or do not fit each other or the data.
      NotFoundError: the data set does not exist.
    """
    check(config)  # Before any image is read.
    mesh = create_mesh(devices)
    config = _resolve(config)
    if not config.model.num_classes:
      if train_data is None:
        train_data = _open_training(config, mesh)
      config = with_num_classes(config, len(train_data.class_names))
    if model is None:
      model = build_model(config)
    elif config.freeze:
      model = with_frozen(model, config.freeze)
    if config.bn_scope != "global":
      model = _with_norm_scope(model, config, mesh)
    if task is None:
      task = _create_task(config)
    parts = {"optimizer": optimizer, "train_data": train_data, "eval_data": eval_data}
    return cls(config, mesh, model, task, class_names, parts)

  @functools.cached_property
  def train_data(self) -> Dataset:
    """The training images."""
    return self._parts["train_data"] or _open_training(self.config, self.mesh)

  @functools.cached_property
  def eval_data(self) -> Dataset:
    """The images for evaluation. Batches are rounded up to fill the devices."""
    config = self.config
    names = self.class_names
    data: Dataset = self._parts["eval_data"] or create_dataset(
      config.data,
      fill_devices(config.batch_size, self.mesh),
      self.mesh,
      class_names=self.train_data.class_names if names is None else names,
    )
    if len(data.class_names) > self.task.num_classes:
      raise UserError(
        f"config.model.num_classes={self.task.num_classes} must be 0 or at least "
        f"{len(data.class_names)}, the number of classes of {config.data.name!r}"
      )
    return data

  @functools.cached_property
  def plan(self) -> Plan:
    """The run in steps."""
    return Plan.create(self.config, self.train_data.num_examples)

  @functools.cached_property
  def schedule(self) -> optax.Schedule:
    """Step -> learning rate of the update that follows."""
    return create_schedule(self.config.optim, self.plan, self.config.batch_size)

  @functools.cached_property
  def state_init(self) -> StateInit:
    """What makes the first state of training, or tells its shapes."""
    config, split = self.config, None
    tx = self._parts["optimizer"] or create_optimizer(
      config.optim, self.schedule, config.freeze
    )
    if config.optim.shard_state:
      tx = split_updates(tx, self.mesh)
      split = partial(split_over_devices, mesh=self.mesh)
    return StateInit(
      self.model,
      tx,
      self.train_data.image_shape,
      replicated(self.mesh),
      ema=config.optim.ema_decay > 0,
      shard_opt_state=split,
    )

  @property
  def keys(self) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Of the first state, and of the order of the training images."""
    init_key, data_key = jax.random.split(jax.random.key(self.config.seed))
    return init_key, data_key

  def initial_state(self) -> TrainState:
    """Computes the state before the first update."""
    return self.state_init(self.keys[0])

  @functools.cached_property
  def preprocess(self) -> steps.Preprocess:
    """(images, key) -> augmented and normalised images; without a key, normalised."""
    return create_preprocess(self.config)

  @functools.cached_property
  def train_chunk(self) -> steps.TrainChunk:
    """Compiled (state, feed, number of updates) -> state, metrics."""
    config = self.config
    return steps.compile_train_chunk(
      task=self.task,
      preprocess=self.preprocess,
      mix=_create_mix(config),
      take_batch=self.train_data.take_batch,
      accumulate=config.optim.accumulate,
      ema_decay=config.optim.ema_decay,
      skip_nonfinite=config.optim.skip_nonfinite,
      state_sharding=self.state_init.sharding(),
      dtype=config.model.dtype,
      sharding=replicated(self.mesh),
      kernel_choice=config.kernels,
    )

  @functools.cached_property
  def eval_chunk(self) -> steps.EvalChunk:
    """Compiled (folded variables, feed, number of batches) -> metrics."""
    return steps.compile_eval_chunk(
      task=self.task,
      apply_fn=folded_model(self.model).apply,
      preprocess=self.preprocess,
      take_batch=self.eval_data.take_batch,
      dtype=self.config.model.dtype,
      sharding=replicated(self.mesh),
      kernel_choice=self.config.kernels,
    )

  @functools.cached_property
  def fold(self) -> Change:
    """Returns variables as `eval_chunk` takes them, with batch norm folded."""
    return jax.jit(
      lambda variables: fold_batch_norm(self.model, variables)[1],
      out_shardings=replicated(self.mesh),
    )

  @functools.cached_property
  def refresh(self) -> Change:
    """Re-estimates batch-norm statistics before an evaluation, if that is set."""
    return create_refresh(
      self.model,
      self.train_data,
      self.plan,
      num_batches=self.config.precise_bn_batches,
      preprocess=self.preprocess,
      key=self.keys[1],
      sharding=replicated(self.mesh),
      kernel_choice=self.config.kernels,
    )

  @property
  def saved_config(self) -> Config:
    """The settings to keep with a run: with the size of the images for evaluation.

    No other setting tells it where none resizes, and photos must be resized to it.
    """
    height, width, _ = self.eval_data.image_shape
    data = self.config.data
    if data.eval_resize or data.eval_crop or height != width:
      return self.config
    data = dataclasses.replace(data, eval_resize=height, eval_crop=width)
    return dataclasses.replace(self.config, data=data)


def check(config: Config) -> None:
  """Checks settings, and the names that the architecture gives a meaning to.

  Raises:
    UserError: a setting is wrong, whatever the data.
  """
  validate(config)
  if not config.model.factory:
    build_model(with_num_classes(config, 1))


def resolve_model(config: Config) -> tuple[Config, nn.Module]:
  """Checks settings that have no data; the classes are the architecture's own.

  Returns:
    The resolved settings and the network.

  Raises:
    UserError: as `check`.
  """
  check(config)
  number = create_model(config.model.name).num_classes
  config = with_num_classes(_resolve(config), number)
  return config, build_model(config)


def _resolve(config: Config) -> Config:
  """Fills in what depends on the machine: the kernels and the dtype."""
  dtype = str(compilation.compute_dtype(config.model.dtype))
  model = dataclasses.replace(config.model, dtype=dtype)
  return dataclasses.replace(
    config, model=model, kernels=kernels.resolve(config.kernels)
  )


def with_num_classes(config: Config, num_classes: int) -> Config:
  """Returns settings with a number of classes, where they have none."""
  model = dataclasses.replace(
    config.model, num_classes=config.model.num_classes or num_classes
  )
  return dataclasses.replace(config, model=model)


def _open_training(config: Config, mesh: Mesh) -> Dataset:
  return create_dataset(config.data, config.batch_size, mesh, config.augment)


def _with_norm_scope(model: nn.Module, config: Config, mesh: Mesh) -> nn.Module:
  """Returns the model with batch norm over the devices of `config.bn_scope`."""
  images = config.batch_size // config.optim.accumulate
  groups = count_norm_groups(config.bn_scope, images, mesh)
  norm: Any = getattr(model, "norm", None)
  return with_fields(model, "bn_scope", norm=partial(norm, groups=groups))


def _create_task(config: Config) -> Task:
  if config.task:
    task: Task = import_factory(config.task, "task")(config)
    return task
  return Classification(config.model.num_classes, config.optim.label_smoothing)


def _create_mix(config: Config) -> steps.Mix | None:
  """Returns `mix` with these settings: (key, images, targets) -> both, mixed."""
  augment = config.augment
  if not (augment.mixup or augment.cutmix):
    return None
  return partial(mix, mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix)
