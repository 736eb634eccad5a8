"""Training: from an experiment to a trained, evaluated and saved model."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
from etils import epath
from rich.console import Console

from resnet_jax.models.image_size import size_warnings
from resnet_jax.models.variables import Variables
from resnet_jax.runs.agreement import check_same_arguments
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.learning_curves import draw_curves
from resnet_jax.runs.lock import Check
from resnet_jax.runs.metric_writer import MetricWriter
from resnet_jax.runs.run_dir import last_checkpoint_in_errors, latest_step, open_run
from resnet_jax.runs.trackers.opening import find_trackers, open_trackers
from resnet_jax.runs.trackers.tracker import MetricSink, TrackerFactory
from resnet_jax.runtime.signals import Stopped, StopRequest, stopped_by_sigterm
from resnet_jax.runtime.terminal import plain, show, warn
from resnet_jax.training.clock import Clock
from resnet_jax.training.evaluator import evaluate
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.headline import headline
from resnet_jax.training.hooks import Hook
from resnet_jax.training.keeper import Keeper
from resnet_jax.training.plateau import Plateau, create_plateau
from resnet_jax.training.profiling import Profiler, Updates, check_profile
from resnet_jax.training.state import TrainState
from resnet_jax.training.task_metrics import results_of
from resnet_jax.training.transfer import load_start, start_from
from resnet_jax.training.utilization import create_seconds_at_peak

T = TypeVar("T")


class TrainResult(NamedTuple):
  """The result of a run.

  Attributes:
    state: the state after the last update.
    metrics: the metrics of the last evaluation: "loss", "top1" (a fraction), "top5" if
      there are more than 5 classes, "count", "images_per_s".
  """

  state: TrainState
  metrics: dict[str, float]


def train(
  experiment: Experiment,
  workdir: str,
  *,
  console: Console | None = None,
  hooks: Sequence[Hook] = (),
  trackers: Sequence[TrackerFactory] = (),
  profile: Updates | None = None,
) -> TrainResult:
  """Trains from the newest checkpoint in `workdir`, or from step 0.

  Args:
    experiment: what to train.
    workdir: the run directory, which is created if it does not exist.
    console: where progress is shown; None is standard output of the first process.
    hooks: user code that is called at logs, evaluations, checkpoints and the end.
    trackers: start your own trackers, in addition to those of `config.trackers`.
    profile: the number of updates to trace, or the steps before the first and after
      the last of them; the same in all processes. None traces nothing.

  Raises:
    UserError: the directory is in use or has other settings, `profile` is wrong, or a
      tracker does not start.
    FloatingPointError: the loss is no longer finite.
    OSError: a state cannot be saved, for example because the disk is full.
    Stopped: a signal asked the run to stop; the state is saved.
  """
  workdir = os.path.expanduser(workdir)
  find_trackers(experiment.config.trackers)  # Before any image is read.
  console = console or Console(quiet=jax.process_index() > 0)
  with console.status(plain(f"loading {experiment.data_name}")):
    check_profile(profile, experiment.plan.num_steps)
    check_same_arguments(profile=profile)
    start = _prepare(experiment, workdir)
  config, num_steps = experiment.saved_config, experiment.plan.num_steps
  names, facts = experiment.train_data.class_names, experiment.facts
  with (
    open_run(workdir, config, num_steps, names, facts) as check,
    contextlib.ExitStack() as later,
    open_trackers(workdir, config, num_steps, trackers) as sinks,
  ):
    result = _train(experiment, workdir, start, console, hooks, sinks, profile, check)
    # Until the trackers have the files of the run, too.
    later.enter_context(stopped_by_sigterm(int(result.state.step)))
    for hook in hooks:
      hook.on_end(*result)
  return result


def _train(
  experiment: Experiment,
  workdir: str,
  start: Variables | None,
  console: Console,
  hooks: Sequence[Hook],
  trackers: Sequence[MetricSink],
  profile: Updates | None,
  check: Check,
) -> TrainResult:
  """Trains in an open run directory."""
  data, plan = experiment.train_data, experiment.plan
  config, best_metric = experiment.config, experiment.facts.best_metric
  plateau = create_plateau(config.optim, plan, experiment.task)
  with (
    last_checkpoint_in_errors(workdir),
    StopRequest() as stop,
    CheckpointStore(workdir, config.checkpoint.keep, best_metric, check) as store,
  ):
    state = _restore(experiment, store, stop, start, workdir, console)
    step = first = int(state.step)
    due = first > 0 and plan.eval_at(first) and not store.is_evaluated(first)
    parts = experiment, plateau, workdir, first, due, console, hooks, trackers
    with (
      Clock() as clock,
      _open_writer(*parts, clock) as writer,
      Profiler(profile, first, plan, workdir, writer, clock, console) as profiler,
    ):
      keeper = Keeper(experiment, writer, store, stop, plateau, hooks, clock)
      plateau.replay(writer.records, "eval" if state.ema is None else "ema", first, due)
      results = keeper.evaluate(state, first) if due else None
      state = plateau.apply(state)
      chunks = data.train_chunks(experiment.data_key, first, profiler.plan)
      if plateau.should_stop:
        chunks = iter(())
      chunks = _saved_before_errors(chunks, lambda: keeper.save(state, step))
      for end, feed, count in clock.waiting(chunks):
        if step == first or plan.resizes_at(step):
          state = _compile(experiment, state, feed, stop, is_first=step == first)
          clock.start()
        profiler.begin_at(step, state)
        args = state, feed, count, plan.size_at(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
          state, metrics = experiment.train_chunk(*args)
        step = end
        clock.dispatched(metrics["count"])
        writer.train(step, metrics)
        profiler.end_at(step, state)
        if (stopping := stop.is_asked()) or plan.save_at(step):
          keeper.save(state, step)
          results = keeper.evaluate(state, step) if plan.eval_at(step) else None
          state = plateau.apply(state)
          clock.start()
        if plateau.should_stop:
          break
        if stopping and step < plan.num_steps:
          raise Stopped(step)
  if plateau.should_stop and step < plan.num_steps:
    show(*plateau.describe_stop(step, step > first), console=console)
  if results is None:  # There was nothing left to train.
    results = evaluate(experiment, _last_version(experiment, state))
  return TrainResult(state, results)


def _prepare(experiment: Experiment, workdir: str) -> Variables | None:
  """Builds parts of the experiment: an error in them comes before the run is created.

  Returns:
    The weights that a new run starts from, if the settings name any.
  """
  for part in ("state_init", "preprocess", "refresh", "teacher"):
    getattr(experiment, part)
  return None if latest_step(workdir) else _load_start(experiment)


def _saved_before_errors(items: Iterator[T], save: Callable[[], None]) -> Iterator[T]:
  """Yields the items; saves before an error of the input ends the run.

  With several processes nothing is saved: they can only save together, and such an
  error happens in one of them.
  """
  try:
    yield from items
  except Exception:  # Readers of images may raise anything; it is raised again.
    if jax.process_count() == 1:
      save()
    raise


def _load_start(experiment: Experiment) -> Variables | None:
  """Returns the weights that `config.init_from` names."""
  config, data = experiment.config, experiment.train_data
  if not config.init_from:
    return None
  args = config.init_from, experiment.model, data.image_shape, config.data
  return load_start(*args, head=config.init_head, class_names=data.class_names)


def _restore(
  experiment: Experiment,
  store: CheckpointStore,
  stop: StopRequest,
  start: Variables | None,
  workdir: str,
  console: Console,
) -> TrainState:
  """Returns the newest state, or the first one of a new run; prints a headline.

  Raises:
    Stopped: a signal asked the run to stop.
  """
  say = partial(show, console=console)
  # Its compilation takes long. Exiting loses nothing, as in `_compile`.
  with stop.interrupting(latest_step(workdir), may_exit=True):
    state = experiment.initial_state()
  state = store.restore_latest(state, say)
  if not state.step:
    if start is None:  # All checkpoints, if there were any, are damaged.
      start = _load_start(experiment)
    if start is not None:
      state = start_from(state, start)
      head = "its" if experiment.config.init_head else "a new"
      say(f"starts from {experiment.config.init_from}, with {head} head")
  say(*headline(experiment, state), f"run: {workdir}")
  shapes = experiment.train_data.image_shape, experiment.eval_data.image_shape
  for text in size_warnings(experiment.model, *shapes):
    warn(text)
  return state


def _open_writer(
  experiment: Experiment,
  plateau: Plateau,
  workdir: str,
  first: int,
  evaluates_first: bool,
  console: Console,
  hooks: Sequence[Hook],
  trackers: Sequence[MetricSink],
  clock: Clock,
) -> MetricWriter:
  plan, schedule = experiment.plan, experiment.schedule
  compiled = None if schedule is None else jax.jit(schedule)

  def draw(records: list[dict[str, Any]], path: epath.Path) -> None:
    drops = [*plan.decay_steps, *plateau.decay_steps] if schedule else []
    draw_curves(
      records,
      path,
      title=f"{experiment.model_name} on {experiment.data_name}",
      best_metric=experiment.facts.best_metric,
      decays=[step / plan.steps_per_epoch for step in drops],
      smoothed=experiment.config.optim.label_smoothing > 0,
      distilled=experiment.teacher is not None,
    )

  def tell(step: int, split: str, values: dict[str, float]) -> None:
    for hook in hooks:
      if split == "train":
        hook.on_log(step, values)
      else:
        hook.on_evaluation(step, split, values)

  return MetricWriter(
    workdir,
    plan,
    None if compiled is None else lambda step: plateau.scale * compiled(step),
    first,
    console,
    clock.lap,
    (experiment.train_data.skipped, experiment.eval_data.skipped),
    tell,
    evaluates_first,
    draw,
    trackers,
    create_seconds_at_peak(experiment),
    partial(results_of, experiment.task),
  )


def _compile(
  experiment: Experiment,
  state: TrainState,
  feed: Any,
  stop: StopRequest,
  is_first: bool,
) -> TrainState:
  """Compiles by calls with 0 steps, so that no measured time includes compilation.

  Args:
    experiment: what is trained.
    state: before the next update; it is saved or being written.
    feed: the data of the next update.
    stop: can end a compilation.
    is_first: whether this process has not trained yet, so that exiting loses nothing.

  Raises:
    Stopped: a signal asked the run to stop.
  """
  step = int(state.step)
  with stop.interrupting(step, may_exit=is_first):
    size = experiment.plan.size_at(step)
    state, _ = experiment.train_chunk(state, feed, 0, size)
    if is_first:
      eval_feed, _ = next(iter(experiment.eval_data.eval_chunks()))
      experiment.eval_chunk(experiment.fold(state.variables), eval_feed, 0)
  return state


def _last_version(experiment: Experiment, state: TrainState) -> Variables:
  *_, last = state.versions.values()
  return experiment.refresh(last)
