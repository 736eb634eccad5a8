"""The story of a run: from settings to a trained, evaluated and saved model."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import jax
from jax.sharding import Mesh
from rich.console import Console

from resnet_jax.config.plan import Plan
from resnet_jax.config.schema import Config
from resnet_jax.data.pipelines.opening import Dataset, create_dataset
from resnet_jax.models.registry import build_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.metric_writer import DIVERGENCE_ADVICE, MetricWriter
from resnet_jax.runs.run_dir import latest_step, open_run
from resnet_jax.runtime.mesh import (
  create_mesh,
  replicated,
)
from resnet_jax.runtime.signals import Stopped, StopRequest
from resnet_jax.training import steps
from resnet_jax.training.evaluator import Devices, create_evaluation, evaluate
from resnet_jax.training.experiment import (
  check,
  create_init,
  create_refresh,
  create_train_chunk,
  resolve,
  with_image_size,
  with_norm_groups,
)
from resnet_jax.training.optimizer import create_schedule
from resnet_jax.training.state import TrainState
from resnet_jax.training.transfer import load_start, start_from


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


def versions(state: TrainState) -> dict[str, Variables]:
  """Returns what is evaluated of a state, by its name; the last one is the best."""
  averaged = {} if state.ema is None else {"ema": state.ema}
  return {"eval": state.variables} | averaged


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
