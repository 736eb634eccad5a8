"""The story of a run: from settings to a trained, evaluated and saved model."""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from functools import partial

import jax
import optax
from jax.sharding import Mesh
from rich.console import Console

from resnet_jax import steps
from resnet_jax.checkpoint import CheckpointStore
from resnet_jax.config import Config
from resnet_jax.data import Dataset, create_dataset
from resnet_jax.data.mixing import mix
from resnet_jax.evaluation import (
  Devices,
  build_model,
  check,
  create_evaluation,
  create_preprocess,
  evaluate,
  resolve,
  with_image_size,
)
from resnet_jax.models.resnet import ResNet
from resnet_jax.optim import create_optimizer, create_schedule
from resnet_jax.plan import Plan
from resnet_jax.run_dir import latest_step, open_run
from resnet_jax.sharding import (
  count_norm_groups,
  create_mesh,
  replicated,
  split_over_devices,
  split_updates,
)
from resnet_jax.stop import Stopped, StopRequest
from resnet_jax.train_state import StateInit, TrainState, Variables
from resnet_jax.transfer import load_start, parse_multipliers, start_from
from resnet_jax.writers import DIVERGENCE_ADVICE, MetricWriter


def train_and_evaluate(
  config: Config,
  workdir: str,
  devices: Devices | None = None,
  console: Console | None = None,
) -> tuple[TrainState, dict[str, float]]:
  """Trains from the newest checkpoint in `workdir`, or from step 0.

  Args:
    config: the experiment.
    workdir: the run directory; made if it is not there.
    devices: to train on; None is all of them.
    console: where progress is shown; None is standard output.

  Returns:
    The final state and its evaluation: "loss", "top1" (a share), "top5" for more
    than 5 classes, "count", "images_per_s".

  Raises:
    ValueError: settings that are wrong or do not fit the data or the run there.
    FileNotFoundError: the data set is not there.
    FloatingPointError: the loss is no longer finite.
    OSError: a state cannot be saved, such as for want of space.
    Stopped: a signal asked for it; the state is saved.
  """
  check(config)
  console = console or Console(quiet=jax.process_index() > 0)
  mesh = create_mesh(devices)
  with console.status(f"loading {config.data.name}"):
    train_set = create_dataset(config.data, config.batch_size, mesh, config.augment)
    plan = Plan.create(config, train_set.num_examples)
    config = resolve(config, len(train_set.class_names))
    model = with_norm_groups(build_model(config), config, mesh)
    eval_set, eval_chunk = create_evaluation(config, model, mesh, train_set.class_names)
    config = with_image_size(config, eval_set.image_shape)
    begin = None
    if config.init_from and not latest_step(workdir):
      begin = load_start(config.init_from, model, train_set.image_shape)

  with (
    open_run(workdir, config, plan.num_steps, train_set.class_names),
    last_checkpoint_in_errors(workdir),
  ):
    return _train(
      config,
      workdir,
      plan,
      model,
      begin,
      train_set,
      eval_set,
      eval_chunk,
      mesh,
      console,
    )


def _train(
  config: Config,
  workdir: str,
  plan: Plan,
  model: ResNet,
  begin: Variables | None,
  train_set: Dataset,
  eval_set: Dataset,
  eval_chunk: Callable,
  mesh: Mesh,
  console: Console,
) -> tuple[TrainState, dict[str, float]]:
  """Trains in a run directory that is open.

  `config` is resolved; `begin` replaces what a new run starts with, but for the head.
  """
  init_key, data_key = jax.random.split(jax.random.key(config.seed))
  schedule = create_schedule(config.optim, plan, config.batch_size)
  init = create_init(config, model, schedule, train_set.image_shape, mesh)
  train_chunk = create_train_chunk(config, init, train_set.take_batch, mesh)
  refresh = create_refresh(config, model, train_set, plan, data_key, replicated(mesh))
  show = partial(console.print, highlight=False, markup=False, soft_wrap=True)
  with CheckpointStore(workdir, config.checkpoint.keep) as store:
    state, results = store.restore_latest(init(init_key), show), None
    if config.init_from and not state.step:
      if begin is None:  # There were checkpoints, all damaged.
        begin = load_start(config.init_from, model, train_set.image_shape)
      state = start_from(state, begin)
      show(f"starts from {config.init_from}, with a new head")
    start = int(state.step)
    show(_headline(config, plan, state, train_set, eval_set))
    show(f"run: {workdir}")
    with (
      StopRequest() as stop,
      MetricWriter(
        workdir, plan, jax.jit(schedule), start, console, train_set, eval_set
      ) as writer,
    ):
      for step, feed, count in train_set.train_chunks(
        data_key, start, plan, writer.is_idle
      ):
        if step - count == start:
          # Calls of no steps compile, so that no measured time contains it.
          state, _ = train_chunk(state, feed, 0)
          eval_chunk(state.variables, next(eval_set.eval_chunks())[0], 0)
          writer.start_clock()
        state, metrics = train_chunk(state, feed, count)
        writer.train(step, metrics)
        stopping = stop.is_asked() and step < plan.num_steps
        if plan.save_at(step) or stopping:
          writer.flush()
          check_finite(state.variables, step, float(schedule(step - 1)))
          results = None
          evaluations = list(versions(state).items())
          if not plan.eval_at(step):  # What is kept to be evaluated is the last.
            evaluations = evaluations[-1:]
          for name, variables in evaluations:
            evaluated = refresh(variables)
            if plan.eval_at(step):
              results = evaluate(eval_chunk, evaluated, eval_set)
              writer.evaluation(step, results, name)
          store.save(step, state, results, evaluated)
          writer.start_clock()
        if stopping:
          break
  if int(state.step) < plan.num_steps:
    raise Stopped(int(state.step))
  if results is None:  # There was nothing left to train.
    *_, last = versions(state).values()
    results = evaluate(eval_chunk, refresh(last), eval_set)
  return state, results


@contextlib.contextmanager
def last_checkpoint_in_errors(workdir: str) -> Iterator[None]:
  """Adds to the error of a run that diverged what there is to go on from."""
  try:
    yield
  except FloatingPointError as error:
    step = latest_step(workdir)
    last = f"the last good checkpoint is of step {step}" if step else "nothing is saved"
    raise FloatingPointError(f"{error}; {last}") from None


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


def versions(state: TrainState) -> dict[str, Variables]:
  """Returns what is evaluated of a state, by its name; the last one is the best."""
  averaged = {} if state.ema is None else {"ema": state.ema}
  return {"eval": state.variables} | averaged


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
  add_moments = steps.compile_statistics_chunk(
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
    statistics = steps.precise_statistics(total, count) | frozen
    return variables | {"batch_stats": statistics}

  return refresh


def check_finite(variables: Variables, step: int, learning_rate: float) -> None:
  """Raises `FloatingPointError` if parameters or statistics are not finite."""
  if not _all_finite(variables):
    raise FloatingPointError(
      f"the parameters are no longer finite after step {step}, at learning rate "
      f"{learning_rate:.3g}; {DIVERGENCE_ADVICE}"
    )


_all_finite = jax.jit(steps.all_finite)


def _headline(config, plan, state, train_set, eval_set) -> str:
  params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  devices = jax.tree.leaves(state.params)[0].sharding.device_set
  kind = next(iter(devices)).device_kind
  done = f", {int(state.step)} of them done" if state.step else ""
  return (
    f"{config.model.name} ({params:,} parameters, {config.model.dtype}) on "
    f"{config.data.name}: {train_set.num_examples:,} training and "
    f"{eval_set.num_examples:,} evaluation images of {len(train_set.class_names):,} "
    "classes\n"
    f"{plan.num_steps} steps of {config.batch_size} images{done}, on "
    f"{len(devices)} {kind} device{'s' * (len(devices) > 1)}"
  )
