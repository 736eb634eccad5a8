"""Everything that is built from a config, built once."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from functools import partial

import jax
import optax
from jax.sharding import Mesh

from resnet_jax.config.plan import Plan
from resnet_jax.config.schema import Config
from resnet_jax.config.validation import validate
from resnet_jax.data.batches.mixup_cutmix import mix
from resnet_jax.data.batches.preprocess import create_preprocess
from resnet_jax.data.pipelines.opening import Dataset
from resnet_jax.models.groups import parse_multipliers
from resnet_jax.models.registry import build_model, create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.mesh import (
  count_norm_groups,
  replicated,
  split_over_devices,
  split_updates,
)
from resnet_jax.training import batch_stats, steps
from resnet_jax.training.optimizer import create_optimizer
from resnet_jax.training.state import StateInit


def check(config: Config) -> None:
  """Raises `ValueError` for any setting that is wrong whatever the data."""
  validate(config)
  model = build_model(resolve(config, num_classes=1))
  parse_multipliers(config.optim.learning_rate_multipliers, model)


def resolve(config: Config, num_classes: int) -> Config:
  """Fills in what depends on the data and the machine: number of classes and dtype."""
  model = dataclasses.replace(
    config.model,
    num_classes=config.model.num_classes or num_classes,
    dtype=str(compilation.compute_dtype(config.model.dtype)),
  )
  return dataclasses.replace(config, model=model)


def with_image_size(config: Config, image_shape: tuple[int, int, int]) -> Config:
  """Returns settings that say how large the evaluated images are, where none do.

  Nothing else about a run does, and photos must be resized for its model.
  """
  height, width, _ = image_shape
  data = config.data
  if data.eval_resize or data.eval_crop or height != width:
    return config
  data = dataclasses.replace(data, eval_resize=height, eval_crop=width)
  return dataclasses.replace(config, data=data)


def resolve_model(config: Config) -> tuple[Config, ResNet]:
  """Checks settings that have no data; the classes are the architecture's own.

  Raises:
    ValueError: as `check`.
  """
  check(config)
  config = resolve(config, create_model(config.model.name).num_classes)
  return config, build_model(config)


def with_norm_groups(model: ResNet, config: Config, mesh: Mesh) -> ResNet:
  """Returns the model with batch norm over the devices that `config.bn_scope` says."""
  if config.bn_scope == "global":
    return model
  images = config.batch_size // config.optim.accumulate
  groups = count_norm_groups(config.bn_scope, images, mesh)
  return model.clone(norm=partial(model.norm, groups=groups))


def create_init(
  config: Config,
  model: ResNet,
  schedule: optax.Schedule,
  image_shape: tuple[int, int, int],
  mesh: Mesh,
) -> StateInit:
  """Returns what makes the first state of a run, or tells its shapes.

  Args:
    config: resolved.
    model: with batch norm as in training.
    schedule: of the learning rate.
    image_shape: (H, W, C).
    mesh: the devices.
  """
  multipliers = parse_multipliers(config.optim.learning_rate_multipliers, model)
  tx = create_optimizer(config.optim, schedule, model.frozen, multipliers)
  split = None
  if config.optim.shard_state:
    tx, split = split_updates(tx, mesh), partial(split_over_devices, mesh=mesh)
  return StateInit(
    model,
    tx,
    image_shape,
    replicated(mesh),
    ema=config.optim.ema_decay > 0,
    shard_opt_state=split,
  )


def create_train_chunk(
  config: Config, init: StateInit, take_batch: steps.TakeBatch, mesh: Mesh
) -> Callable:
  """Returns the jitted `train_chunk` of these settings.

  Args:
    config: resolved.
    init: of the state.
    take_batch: of the data set.
    mesh: the devices.
  """
  return steps.compile_train_chunk(
    preprocess=create_preprocess(config),
    mix=create_mix(config),
    take_batch=take_batch,
    num_classes=config.model.num_classes,
    label_smoothing=config.optim.label_smoothing,
    accumulate=config.optim.accumulate,
    ema_decay=config.optim.ema_decay,
    skip_nonfinite=config.optim.skip_nonfinite,
    state_sharding=init.sharding(),
    dtype=config.model.dtype,
    sharding=replicated(mesh),
  )


def create_mix(config: Config) -> Callable | None:
  """Returns `mix` with these settings: (key, images, labels) -> images, targets."""
  augment = config.augment
  if not (augment.mixup or augment.cutmix):
    return None

  def apply(key: jax.Array, images: jax.Array, labels: jax.Array):
    targets = jax.nn.one_hot(labels, config.model.num_classes)
    return mix(key, images, targets, augment.mixup, augment.cutmix)

  return apply


def create_refresh(
  config: Config,
  model: ResNet,
  train_set: Dataset,
  plan: Plan,
  key: jax.Array,
  sharding: jax.sharding.Sharding,
) -> Callable[[Variables], Variables]:
  """Returns a function that computes batch-norm statistics anew, if that is set.

  Args:
    config: resolved.
    model: as trained.
    train_set: whose batches are taken, in an order of their own.
    plan: of training.
    key: PRNG key of training's order.
    sharding: of the statistics.
  """
  count = config.precise_bn_batches
  if not count:
    return lambda variables: variables
  add_moments = batch_stats.compile_statistics_chunk(
    model=model,
    preprocess=create_preprocess(config),
    take_batch=train_set.take_batch,
    sharding=sharding,
  )
  key, plan = jax.random.fold_in(key, 1), dataclasses.replace(plan, num_steps=count)

  def refresh(variables: Variables) -> Variables:
    sums = [
      add_moments(variables, feed, number, step - number, key)
      for step, feed, number in train_set.train_chunks(key, 0, plan, lambda: False)
    ]
    total = functools.reduce(partial(jax.tree.map, operator.add), sums)
    frozen = {
      name: statistics
      for name, statistics in variables["batch_stats"].items()
      if name in model.frozen
    }
    statistics = batch_stats.precise_statistics(total, count) | frozen
    return variables | {"batch_stats": statistics}

  return refresh
