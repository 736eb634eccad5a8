"""Training: from an experiment to a trained, evaluated and saved model."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
from etils import epath
from rich.console import Console

from resnet_jax.models.image_size import size_warnings
from resnet_jax.models.variables import Variables
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.learning_curves import draw_curves
from resnet_jax.runs.metric_writer import DIVERGENCE_ADVICE, Lap, MetricWriter
from resnet_jax.runs.run_dir import latest_step, open_run
from resnet_jax.runtime.signals import Stopped, StopRequest
from resnet_jax.runtime.terminal import plain, show, warn
from resnet_jax.training import steps
from resnet_jax.training.clock import Clock
from resnet_jax.training.evaluator import evaluate
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.headline import headline
from resnet_jax.training.hooks import Hook
from resnet_jax.training.plateau import Plateau, create_plateau
from resnet_jax.training.state import TrainState
from resnet_jax.training.transfer import load_start, start_from

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
) -> TrainResult:
  """Trains from the newest checkpoint in `workdir`, or from step 0.

  Args:
    experiment: what to train.
    workdir: the run directory, which is created if it does not exist.
    console: where progress is shown; None is standard output of the first process.
    hooks: user code that is called at logs, evaluations and checkpoints.

  Raises:
    UserError: the directory holds a run with other settings, or is in use.
    FloatingPointError: the loss is no longer finite.
    OSError: a state cannot be saved, for example because the disk is full.
    Stopped: a signal asked the run to stop; the state is saved.
  """
  workdir = os.path.expanduser(workdir)
  console = console or Console(quiet=jax.process_index() > 0)
  with console.status(plain(f"loading {experiment.data_name}")):
    start = _prepare(experiment, workdir)
  data, plan = experiment.train_data, experiment.plan
  config, facts = experiment.saved_config, experiment.facts
  plateau = create_plateau(config.optim, plan, experiment.task)
  with (
    open_run(workdir, config, plan.num_steps, data.class_names, facts) as check,
    _last_checkpoint_in_errors(workdir),
    StopRequest() as stop,
    CheckpointStore(workdir, config.checkpoint.keep, facts.best_metric, check) as store,
  ):
    state = _restore(experiment, store, stop, start, workdir, console)
    step = first = int(state.step)
    due = first > 0 and plan.eval_at(first) and not store.is_evaluated(first)
    parts = experiment, plateau, workdir, first, due, console, hooks
    with Clock() as clock, _open_writer(*parts, clock.lap) as writer:
      keeper = _Keeper(experiment, writer, store, stop, plateau, hooks)
      plateau.replay(writer.records, "eval" if state.ema is None else "ema", first, due)
      results = keeper.evaluate(state, first) if due else None
      state = plateau.apply(state)
      chunks = data.train_chunks(experiment.data_key, first, plan)
      if plateau.should_stop:
        chunks = iter(())
      chunks = _saved_before_errors(chunks, lambda: keeper.save(state, step))
      for end, feed, count in clock.waiting(chunks):
        if step == first or plan.resizes_at(step):
          state = _compile(experiment, state, feed, stop, is_first=step == first)
          clock.start()
        state, metrics = experiment.train_chunk(state, feed, count, plan.size_at(step))
        step = end
        clock.dispatched(metrics["count"])
        writer.train(step, metrics)
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


@dataclasses.dataclass(frozen=True)
class _Keeper:
  """Saves states and evaluates them."""

  experiment: Experiment
  writer: MetricWriter
  store: CheckpointStore
  stop: StopRequest
  plateau: Plateau
  hooks: Sequence[Hook]

  def save(self, state: TrainState, step: int) -> None:
    """Saves a state after `step` updates, if it is new and finite."""
    if not step:
      return
    self.writer.flush()
    self.writer.send()
    self._check_finite(state, step)
    *_, last = state.versions.values()
    is_average = last["params"] is not state.params
    if self.store.save(step, state, last if is_average else None):
      for hook in self.hooks:
        hook.on_checkpoint(step, state)

  def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
    """Evaluates a saved state and its EMA, if any; adds the result to its checkpoint.

    Returns:
      The metrics of the EMA if there is one, else those of the parameters.

    Raises:
      Stopped: a signal asked the run to stop; the resumed run does the evaluation.
    """
    found = {}
    self.writer.begin_evaluation()
    with self.stop.interrupting(step):
      for name, variables in state.versions.items():
        evaluated = self.experiment.refresh(variables)
        found[name] = results = evaluate(self.experiment, evaluated)
    for name, values in found.items():
      self.writer.evaluation(step, values, name)
    is_refreshed = self.experiment.config.precise_bn_batches > 0
    self.store.add_evaluation(step, results, evaluated if is_refreshed else None)
    self.plateau.add(step, results)
    self.writer.draw_curves()
    return results

  def _check_finite(self, state: TrainState, step: int) -> None:
    """Raises `FloatingPointError` if parameters or statistics are not finite."""
    if not _all_finite(state.variables):
      raise FloatingPointError(
        f"the parameters are no longer finite after step {step}"
        f"{self.writer.describe_rate(step)}; {DIVERGENCE_ADVICE}"
      )


_all_finite = jax.jit(steps.all_finite)


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
  lap: Lap,
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
    lap,
    (experiment.train_data.skipped, experiment.eval_data.skipped),
    tell,
    evaluates_first,
    draw,
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


@contextlib.contextmanager
def _last_checkpoint_in_errors(workdir: str) -> Iterator[None]:
  """Adds the last good checkpoint to the error of a run that diverged."""
  try:
    yield
  except FloatingPointError as error:
    step = latest_step(workdir)
    last = f"the last good checkpoint is of step {step}" if step else "nothing is saved"
    raise FloatingPointError(f"{error}; {last}") from None
