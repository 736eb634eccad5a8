"""Builds every part of a run from its config, each part once."""

import dataclasses
import functools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from resnet_jax import kernels
from resnet_jax.config.factories import part_name
from resnet_jax.config.plan import Plan
from resnet_jax.config.schema import Config
from resnet_jax.data import Dataset, count_images, is_source
from resnet_jax.data.batches.mixup_cutmix import create_mix
from resnet_jax.data.batches.moved_labels import create_move_labels
from resnet_jax.data.batches.preprocess import create_normalize, create_preprocess
from resnet_jax.data.pipelines.opening import create_dataset
from resnet_jax.models.building import build_model, with_frozen, with_norm
from resnet_jax.models.folding import fold_batch_norm, folded_model
from resnet_jax.models.groups import check_frozen, check_multipliers
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Change
from resnet_jax.runs.agreement import check_same_settings
from resnet_jax.runs.facts import RunFacts
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
from resnet_jax.training import eval_steps, steps
from resnet_jax.training.averages import create_average
from resnet_jax.training.batch_stats import create_refresh
from resnet_jax.training.given_images import Images, image_size_of, open_training
from resnet_jax.training.optimizer import create_optimizer, create_schedule
from resnet_jax.training.resolved_config import (
  resolve_settings,
  with_dtype,
  with_eval_size,
  with_label_statistics,
  with_num_classes,
)
from resnet_jax.training.sharpness import create_perturbation
from resnet_jax.training.state import StateInit, TrainState
from resnet_jax.training.task_checks import (
  check_image_size,
  check_network_outputs,
  check_outputs,
  check_task,
)
from resnet_jax.training.tasks import Task, create_task, outputs_of
from resnet_jax.training.teacher import Teacher, create_teacher

Devices = Sequence[jax.Device]
_GIVE_BOTH = "one of train_data and eval_data was given; give both"


@dataclasses.dataclass(eq=False)
class Experiment:
  """One experiment, with every part that its settings describe or that the user gives.

  A part is built when it is first used, and then kept. Use `create` to make one.

  Attributes:
    config: the checked settings, with the number of classes and the dtype filled in.
    mesh: the devices.
    model: the network.
    task: what the network is trained for.
    class_names: names of the network's outputs, in order; () if they are not known;
      None takes them from the training images.
    own_parts: names of the parts that the user gave as objects, each written as the
      setting that it replaces, such as "model.factory".
  """

  config: Config
  mesh: Mesh
  model: nn.Module
  task: Task
  class_names: Sequence[str] | None
  own_parts: tuple[str, ...]
  _optimizer: optax.GradientTransformation | None
  _train_images: Images | None
  _eval_images: Images | None

  @classmethod
  def create(
    cls,
    config: Config,
    *,
    devices: Devices | None = None,
    model: nn.Module | None = None,
    task: Task | None = None,
    optimizer: optax.GradientTransformation | None = None,
    train_data: Images | None = None,
    eval_data: Images | None = None,
    class_names: Sequence[str] | None = None,
  ) -> "Experiment":
    """Checks the settings, and builds the network and the task.

    If the settings do not give the number of classes, this opens the training images.

    Args:
      config: the settings; they are copied, not changed.
      devices: the devices to compute on; None is all of them.
      model: a network in place of `config.model`: a Flax module that is called as
        `model.init(key, images)` and `model.apply(variables, images, train=...)`, and
        returns float32 logits [B, K].
      task: a task in place of `config.task`.
      optimizer: an optimiser in place of `config.optim`; `config.freeze` and
        `config.optim.learning_rate_multipliers` still hold.
      train_data: training images in place of `config.data`.
      eval_data: images for evaluation in place of `config.data`.
      class_names: see `Experiment`.

    Raises:
      UserError: a setting is wrong, does not fit the other settings or the data, or
        differs from the settings of process 0.
      NotFoundError: the data set does not exist.
    """
    config = resolve_settings(config, model)  # Before any image is read.
    mesh = create_mesh(devices)
    if mesh.is_multi_process:  # Before any array is put on devices.
      check_same_settings(config)
    config = with_dtype(config)
    kernels.start(config.kernels, config.model.dtype)
    given = {
      "model.factory": model,
      "task": task,
      "optim.factory": optimizer,
      "data.factory": eval_data if train_data is None else train_data,
    }
    if not config.model.num_classes:
      if train_data is None and eval_data is not None:
        raise UserError(_GIVE_BOTH)
      train_data = open_training(config, mesh, train_data)
      config = with_num_classes(config, len(train_data.class_names))
    if config.loss.needs_labels(config.data.labels) and not (task or config.task):
      train_data = open_training(config, mesh, train_data)
      config = with_label_statistics(config, train_data)
    model = build_model(config) if model is None else with_frozen(model, config.freeze)
    if task is None:
      images = eval_data if train_data is None else train_data
      if images is None and config.data.labels == "boxes":  # Of what size are they?
        images = train_data = open_training(config, mesh)
      task = create_task(config, model, image_size_of(config.data, images))
    check_task(task, config)
    if config.kernels == "native":  # It may not be possible.
      kernels.resolve(config.kernels, dtype=config.model.dtype)
    return cls(
      config,
      mesh,
      model,
      task,
      class_names,
      tuple(name for name, part in given.items() if part is not None),
      optimizer,
      train_data,
      eval_data,
    )

  @functools.cached_property
  def kernels(self) -> str:
    """How convolution and batch norm are computed: "xla" or "native"."""
    return kernels.resolve(self.config.kernels, dtype=self.config.model.dtype)

  @functools.cached_property
  def train_data(self) -> Dataset:
    """The training images."""
    if self._owns_images and self._train_images is None:
      raise UserError(_GIVE_BOTH)
    return open_training(self.config, self.mesh, self._train_images)

  @functools.cached_property
  def eval_data(self) -> Dataset:
    """The images for evaluation. Batches are rounded up to fill the devices."""
    data, names = self._eval_images, self.class_names
    if self._owns_images and data is None:
      raise UserError(_GIVE_BOTH)
    if data is None or is_source(data):
      size = fill_devices(self.config.batch_size, self.mesh)
      names = self.train_data.class_names if names is None else names
      args = self.config.data, size, self.mesh
      data = create_dataset(*args, class_names=names, source=data)
    check_outputs(self.task, len(data.class_names), repr(self.data_name))
    check_image_size(self.task, data.image_shape)
    return data

  @property
  def _owns_images(self) -> bool:
    return "data.factory" in self.own_parts

  @property
  def model_name(self) -> str:
    """The architecture, or the name of the user's own class or function."""
    if "model.factory" in self.own_parts:
      return type(self.model).__name__
    return part_name(self.config.model.factory, self.config.model.name)

  @property
  def data_name(self) -> str:
    """The data set, or the name of the user's own function."""
    if self._owns_images:
      return "own images"
    return part_name(self.config.data.factory, self.config.data.name)

  @functools.cached_property
  def plan(self) -> Plan:
    """The schedule of the run, in steps."""
    return Plan.create(self.config, self.train_data.num_examples)

  @functools.cached_property
  def schedule(self) -> optax.Schedule | None:
    """Step -> learning rate of the next update; None if the user gave an optimiser."""
    if self._optimizer is not None:
      return None
    return create_schedule(self.config.optim, self.plan, self.config.batch_size)

  @functools.cached_property
  def state_init(self) -> StateInit:
    """Creates the first state; its network pools batch norm as `bn_scope` says."""
    config, model, split = self.config, self.model, None
    parts = config.optim, self.schedule, config.freeze, self._optimizer
    tx = create_optimizer(*parts, self.plan.warmup_steps)
    if config.optim.shard_state:
      tx = split_updates(tx, self.mesh)
      split = partial(split_over_devices, mesh=self.mesh)
    if config.bn_scope != "global":
      images = config.batch_size // config.optim.accumulate
      groups = count_norm_groups(config.bn_scope, images, self.mesh)
      model = with_norm(model, "bn_scope", groups=groups)
    init = StateInit(
      model,
      tx,
      self.train_data.image_shape,
      replicated(self.mesh),
      ema=create_average(config.optim, self.plan) is not None,
      shard_opt_state=split,
    )
    if not (isinstance(self.model, ResNet) and type(outputs_of(self.task)) is tuple):
      self._check_network(init.shapes)
    return init

  def _check_network(self, shapes: TrainState) -> None:
    """Checks the parameters and outputs of a network that is not a plain `ResNet`."""
    groups = getattr(self.model, "groups", tuple(shapes.params))
    check_multipliers(self.config.optim.learning_rate_multipliers, groups)
    check_frozen(self.config.freeze, groups)
    images = jax.ShapeDtypeStruct((1, *self.train_data.image_shape), jnp.float32)
    apply = partial(self.model.apply, train=False)
    logits = jax.eval_shape(apply, shapes.variables, images)
    check_network_outputs(self.task, logits, self.model_name)

  @functools.cached_property
  def data_key(self) -> PRNGKeyArray:
    """PRNG key for the order of the training images and for their augmentation."""
    return jax.random.split(jax.random.key(self.config.seed))[1]

  def initial_state(self) -> TrainState:
    """Computes the state before the first update."""
    init_key, _ = jax.random.split(jax.random.key(self.config.seed))
    return self.state_init(init_key)

  @functools.cached_property
  def preprocess(self) -> steps.Preprocess:
    """(images, key, size=0) -> resized, augmented and normalised images."""
    return create_preprocess(self.config, self.train_data.image_shape)

  @functools.cached_property
  def teacher(self) -> Teacher | None:
    """The teacher of `config.distill`, which fits the data; None if it has none."""
    return create_teacher(self.config, self.task, self.train_data)

  @functools.cached_property
  def train_chunk(self) -> steps.TrainChunk:
    """Compiled (state, feed, number of updates, image size) -> state, metrics."""
    config, teacher = self.config, self.teacher
    return steps.compile_train_chunk(
      task=self.task,
      preprocess=self.preprocess,
      move_labels=create_move_labels(config, self.train_data.image_shape),
      mix=create_mix(config.augment),
      perturb=create_perturbation(config),
      take_batch=self.train_data.take_batch,
      accumulate=config.optim.accumulate,
      average=create_average(config.optim, self.plan),
      skip_nonfinite=config.optim.skip_nonfinite,
      state_sharding=self.state_init.sharding(),
      dtype=config.model.dtype,
      sharding=replicated(self.mesh),
      kernel_choice=self.kernels,
      distillation=None if teacher is None else teacher.distillation,
    )

  @functools.cached_property
  def eval_chunk(self) -> eval_steps.EvalChunk:
    """Compiled (folded variables, feed, number of batches) -> metrics."""
    return eval_steps.compile_eval_chunk(
      task=self.task,
      apply_fn=folded_model(self.model).apply,
      preprocess=create_normalize(self.config.data),
      take_batch=self.eval_data.take_batch,
      dtype=self.config.model.dtype,
      sharding=replicated(self.mesh),
      kernel_choice=self.kernels,
    )

  @functools.cached_property
  def fold(self) -> Change:
    """Folds batch norm; returns the variables that `eval_chunk` takes."""
    return jax.jit(
      lambda variables: fold_batch_norm(self.model, variables)[1],
      out_shardings=replicated(self.mesh),
    )

  @functools.cached_property
  def refresh(self) -> Change:
    """Re-estimates batch-norm statistics, if `config.precise_bn_batches` is set."""
    return create_refresh(
      self.model,
      self.train_data,
      self.plan,
      num_batches=self.config.precise_bn_batches,
      preprocess=partial(self.preprocess, size=self.plan.sizes[-1]),
      key=self.data_key,
      sharding=replicated(self.mesh),
      kernel_choice=self.kernels,
    )

  @property
  def facts(self) -> RunFacts:
    """What to save with a run in addition to its settings."""
    shape, images = self.eval_data.image_shape, count_images(self.train_data)
    return RunFacts(
      *(self.kernels, self.task.best_metric, shape, self.own_parts, *images),
      teacher_digest="" if self.teacher is None else self.teacher.digest,
    )

  @property
  def saved_config(self) -> Config:
    """The settings to save with a run."""
    return with_eval_size(self.config, self.eval_data.image_shape)
