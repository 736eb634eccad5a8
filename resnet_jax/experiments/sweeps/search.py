"""The search: asks Optuna for settings, trains with them, and reports the results."""

import os
import time
import uuid
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnet_jax.config.allowed import check_choice
from resnet_jax.config.fields import flatten
from resnet_jax.config.schema import Config
from resnet_jax.data import ImageCount, describe_change
from resnet_jax.experiments.jobs import Job
from resnet_jax.experiments.sweeps.space import Space, as_trial, grid, with_values
from resnet_jax.runtime.atomic_files import write_text
from resnet_jax.runtime.errors import UserError

if TYPE_CHECKING:
  import optuna

# Metrics of the last evaluation (of the EMA, if there is one) and their directions.
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
  "top1": "maximize",
  "sample_f1": "maximize",
  "exact": "maximize",
  "skill": "maximize",
  "mae": "minimize",
  "loss": "minimize",
}
# `DataConfig.labels` -> the metrics for it; the first is the default.
METRICS = {
  "class": ("top1", "loss"),
  "classes": ("sample_f1", "exact", "loss"),
  "numbers": ("skill", "mae", "loss"),
}
SAMPLERS = "tpe", "random", "grid"
# Pruning starts when this many trials have ended. It judges a trial at a step only if
# this many trials have reported the step.
_FIRST_TRIALS = 5


def check_names(sampler: str, metric: str, labels: str) -> str:
  """Returns the metric; raises `UserError` for an unknown sampler or metric.

  Args:
    sampler: one of `SAMPLERS`.
    metric: "" is the default.
    labels: `DataConfig.labels`.
  """
  check_choice("--sampler", sampler, SAMPLERS)
  metric = metric or METRICS[labels][0]
  check_choice("--metric", metric, METRICS[labels])
  return metric


def open_study(
  storage: str,
  name: str,
  sampler: str,
  metric: str,
  prune: bool,
  seed: int,
  place: str = "",
) -> "optuna.Study":
  """Opens a study, or creates it.

  Args:
    storage: URL of a database, or path of a file.
    name: name of the study; a storage can contain many studies.
    sampler: one of `SAMPLERS`.
    metric: a key of `DIRECTIONS`.
    prune: whether to stop trials that are worse than the median at the same step.
    seed: seed of the sampler.
    place: identifies this process if several share the storage.

  Raises:
    ValueError: the storage cannot be opened, or the study is for another metric.
  """
  import optuna
  from sqlalchemy.exc import DBAPIError

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
  if prune:
    pruner = optuna.pruners.MedianPruner(_FIRST_TRIALS, n_min_trials=_FIRST_TRIALS)
  for last in (False, False, True):
    try:
      study = optuna.create_study(
        storage=_open_storage(storage),
        study_name=name,
        direction=DIRECTIONS[metric],
        pruner=pruner,
        load_if_exists=True,
      )
      break
    except Exception as error:  # Each database's driver has its own errors.
      # Another process may be creating the same tables at the same time.
      kinds = DBAPIError, optuna.exceptions.StorageInternalError
      if isinstance(error, kinds) and not last:
        time.sleep(1)
        continue
      text = str(error).strip().split("\n")[0]
      raise UserError(f"--storage={storage}: {type(error).__name__}: {text}") from error
  if study.user_attrs.get("metric", metric) != metric:
    raise UserError(
      f"--metric={metric}, but the study {name!r} in {storage} is for "
      f"{study.user_attrs['metric']}; name another --name"
    )
  study.set_user_attr("metric", metric)
  # A resumed study and another machine must not draw the same numbers again.
  seed += len(study.get_trials(deepcopy=False)) + zlib.crc32(place.encode())
  seed %= 2**32
  study.sampler = (
    optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # For parallel trials.
    if sampler == "tpe"
    else optuna.samplers.RandomSampler(seed=seed)
  )
  return study


def _open_storage(storage: str) -> "optuna.storages.BaseStorage":
  from optuna.storages import JournalStorage, RDBStorage
  from optuna.storages.journal import JournalFileBackend

  url, mark, path = storage.partition(":///~")
  if mark:  # A file in the home directory.
    storage = f"{url}:///{os.path.expanduser('~' + path)}"
  if "://" in storage:
    return RDBStorage(storage)
  storage = os.path.expanduser(storage)
  Path(storage).parent.mkdir(parents=True, exist_ok=True)
  return JournalStorage(JournalFileBackend(storage))


class Search:
  """The trials of one process: takes them from a study, and reports their results.

  Call its methods in this order: `enqueue`, `take_up`, `jobs`.
  """

  def __init__(
    self,
    study: "optuna.Study",
    space: Space,
    config: Config,
    out: Path,
    metric: str,
    images: Mapping[str, ImageCount] | None = None,
  ):
    """Runs nothing yet.

    Args:
      study: study from `open_study`.
      space: space from `load_space`, checked.
      config: base settings of all trials; its evaluation split judges them.
      out: directory of this process; `out/runs` contains the trials' runs.
      metric: a key of `DIRECTIONS`.
      images: result of `check_data` for `config`.

    Raises:
      ValueError: the study's trials have other base settings or other images.
    """
    self._study, self._space, self._config = study, space, config
    self._out, self._metric = out.resolve(), metric
    self._trials: dict[Job, optuna.Trial] = {}
    self._check_same_settings()
    self._check_same_images(images or {})
    # A path cannot identify the owner: on another machine it is another directory.
    owner = self._out / "owner"
    if not owner.exists():
      self._out.mkdir(parents=True, exist_ok=True)
      write_text(owner, uuid.uuid4().hex)
    self._owner = owner.read_text()

  def _check_same_settings(self) -> None:
    varied = {*self._space, "data.dir", "data.num_threads", "data.num_workers"}
    settings = {
      path: repr(value)
      for path, value in flatten(self._config).items()
      if path not in varied
    }
    before = self._study.user_attrs.get("settings", settings)
    for path, value in settings.items():
      if path in before and before[path] != value:
        raise UserError(
          f"config.{path} was {before[path]} in the study {self._study.study_name!r} "
          f"and is now {value}; name another --name"
        )
    self._study.set_user_attr("settings", settings)

  def _check_same_images(self, images: Mapping[str, ImageCount]) -> None:
    if any(path.startswith("data.") for path in self._space):
      return  # Trials may differ in their images.
    for kind, count in images.items():
      before = self._study.user_attrs.get(f"{kind} images", count)
      if change := describe_change(tuple(before), count):
        raise UserError(
          f"the study {self._study.study_name!r} is on {before[0]:,} {kind} images, "
          f"and now {change}; put the old ones back, or name another --name"
        )
      self._study.set_user_attr(f"{kind} images", count)

  def enqueue(self, every: bool, limit: int) -> int:
    """Puts the first values to try into the study's queue.

    Args:
      every: whether to queue all combinations; otherwise the config's values are
        queued, if the space contains them.
      limit: largest number of trials.

    Returns:
      The number of queued trials.
    """
    own = as_trial(self._space, flatten(self._config))
    first = grid(self._space) if every else [own] if own else []
    del first[limit:]
    for params in first:
      self._study.enqueue_trial(params, skip_if_exists=True)
    return len(first)

  def take_up(self) -> None:
    """Resumes the trials that a killed process left in `out`."""
    from optuna.trial import TrialState

    for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
      if trial.user_attrs.get("owner") == self._owner:
        run = trial.user_attrs["run"]
        attributes = {"run": run, "owner": self._owner, "goes_on_from": trial.number}
        self._study.enqueue_trial(trial.params, attributes)
        self._study.tell(trial.number, state=TrialState.FAIL)

  def count(self) -> int:
    """Returns the number of started trials of all processes.

    A trial that was resumed counts once.
    """
    from optuna.trial import TrialState

    trials = self._study.get_trials(deepcopy=False)
    begun = [trial for trial in trials if trial.state != TrialState.WAITING]
    return sum("goes_on_from" not in trial.user_attrs for trial in begun)

  def jobs(self, limit: int) -> Iterator[Job]:
    """Yields a job for each trial, until there are `limit`."""
    while self.waiting() or self.count() < limit:
      trial = self._study.ask(dict(self._space))
      config = with_values(self._config, trial.params)
      if trial.user_attrs.get("owner") != self._owner:
        # A new trial, or one from another machine that is resumed here.
        trial.set_user_attr("run", f"trial{trial.number}")
        trial.set_user_attr("owner", self._owner)
      workdir = self._out / "runs" / trial.user_attrs["run"]
      job = Job(f"trial {trial.number}", config, workdir)
      self._trials[job] = trial
      yield job

  def waiting(self) -> int:
    """Returns the number of started trials that wait to be resumed."""
    from optuna.trial import TrialState

    waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return sum("goes_on_from" in trial.user_attrs for trial in waiting)

  def report(self, job: Job) -> None:
    """Reports a job's evaluations to the study, and stops the job if they are bad."""
    trial = self._trials[job]
    if trial.user_attrs.get("pruned"):  # A second signal would prevent the save.
      return
    split = "ema" if job.config.optim.has_average else "eval"
    for record in job.metrics():
      if record["split"] == split:
        with warnings.catch_warnings():  # About a step reported before.
          warnings.simplefilter("ignore")
          trial.report(record[self._metric], record["step"])
    if trial.should_prune():
      trial.set_user_attr("pruned", True)
      job.stop()

  def end(self, job: Job) -> str:
    """Reports to the study how a job ended; returns it in words."""
    from optuna.trial import TrialState

    trial, result = self._trials.pop(job), job.result()
    if result is not None and "diverged" not in result:
      value = result[self._metric]
      trial.set_user_attr("seconds", result["seconds"])
      self._study.tell(trial, value)
      return f"{self._metric} {value:.4f}"
    if result is None and trial.user_attrs.get("pruned"):
      self._study.tell(trial, state=TrialState.PRUNED)
      return "pruned"
    error = job.error() if result is None else result["diverged"]
    trial.set_user_attr("error", error)
    self._study.tell(trial, state=TrialState.FAIL)
    return f"failed: {error}"
