"""Checkpoints of a run, to resume training or to evaluate.

`checkpoints/STEP` in the run directory holds the parts "model" and "training".
Evaluation needs only "model". If an average (EMA) is evaluated, it is in "evaluated".
Variables with re-estimated batch-norm statistics are in "refreshed". The "metrics" of
the evaluation are added last.
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from resnet_jax.models.scan_layout import to_named
from resnet_jax.models.variables import Variables
from resnet_jax.runs import checksums
from resnet_jax.runs.checkpoint_folder import create_folder
from resnet_jax.runs.facts import read_facts
from resnet_jax.runs.lock import Check, no_check
from resnet_jax.runs.orbax_options import KeepBest, async_options, hide_late_results
from resnet_jax.runs.run_dir import saved_steps, write_file
from resnet_jax.runs.saved_state import S, State
from resnet_jax.runs.stored_arrays import (
  StoredArray,
  clean_errors,
  read_shapes,
  shapes_to_restore,
  to_keys,
)
from resnet_jax.runtime.errors import NotFoundError, UserError

Show = Callable[[str], None]  # Shows a line of text to the user.


class CheckpointStore:
  """Saves the states of one run in the background. A context manager.

  Leaving the context waits for the last save, and raises `OSError` if that fails.
  """

  def __init__(
    self, workdir: str | Path, keep: int = 1, best: str = "", check: Check = no_check
  ):
    """Opens `workdir/checkpoints`, or creates it.

    Args:
      workdir: the run directory.
      keep: number of newest states to keep, in addition to the best one.
      best: the metric that chooses the best state; higher is better. "" is the metric
        that the run was trained with.
      check: called before a checkpoint is copied to a bucket, see `open_run`.
    """
    hide_late_results()
    facts = read_facts(workdir)
    self._keep, self._best = keep, best or facts.best_metric
    self._has_digests = facts.has_digests
    self._workdir, self._folder = workdir, create_folder(workdir, check)
    self._directory = self._folder.stored
    self._newest: int | None = None  # The last that was restored or saved.
    self._saving, self._parts = 0, tuple[str, ...]()

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    """Orbax's manager, which saves and deletes."""
    policies, processes = checkpoint_managers, self._folder.processes
    kept = [policies.LatestN(self._keep), KeepBest(self._best_step)]
    kept = kept[:1] if self._folder.is_copied else kept
    return ocp.CheckpointManager(
      self._folder.local,
      options=ocp.CheckpointManagerOptions(
        create=not self._folder.is_copied,  # Orbax creates none for some processes.
        async_options=async_options(post_finalization_callback=self._complete),
        multiprocessing_options=processes,
        preservation_policy=policies.AnyPreservationPolicy(kept),
      ),
      item_handlers={
        name: ocp.StandardCheckpointHandler(multiprocessing_options=processes)
        for name in ("model", "training", "evaluated")
      },
    )

  def _complete(self) -> None:
    """Adds digests to the checkpoint that Orbax is about to commit, and publishes it.

    Raises:
      OSError: it is incomplete. Orbax then abandons it, and deletes no older one.
    """
    if jax.process_index() == 0:
      directory = self._folder.local / f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}"
      checksums.write_digests(directory, self._parts)
      self._folder.publish(self._saving, directory, self._keep, self._best_step)

  def __enter__(self) -> "CheckpointStore":
    return self

  def __exit__(self, *exc_info: object) -> None:
    with self._folder:
      if "_manager" in vars(self):  # Created by its first use.
        with self._save_errors():
          self._manager.close()

  def save(self, step: int, state: State, evaluated: Variables | None = None) -> bool:
    """Saves a state; returns as soon as it is copied, before it is written.

    Args:
      step: completed updates.
      state: may be given away (donated) afterwards.
      evaluated: the variables to evaluate; None is `state.variables`.

    Returns:
      Whether the state was new: False if this step was saved before.

    Raises:
      OSError: the save before this one failed, for example because the disk is full.
    """
    if self._newest is None:
      self._newest = max(saved_steps(self._workdir), default=-1)
    if step == self._newest:
      return False
    items = state.to_saved()
    if evaluated is not None:
      items["evaluated"] = to_named(evaluated)
    self._save(step, items)
    self._newest = step
    return True

  def _save(self, step: int, items: dict[str, Any]) -> None:
    items = self._folder.to_saved(items)
    if not self._folder.writes:
      return
    saved = {name: ocp.args.StandardSave(x) for name, x in items.items()}
    with self._save_errors():
      self._manager.wait_until_finished()  # `_complete` handles one save at a time.
      self._saving, self._parts = step, tuple(items)
      self._folder.check_space(items)
      self._manager.save(step, args=ocp.args.Composite(**saved))

  def add_evaluation(
    self, step: int, metrics: dict[str, float], refreshed: Variables | None = None
  ) -> None:
    """Adds an evaluation to a saved state. Only evaluated states can be the best.

    Args:
      step: the newest step; the call waits for its save to end.
      metrics: the metrics of the evaluation.
      refreshed: the evaluated variables, if their statistics were re-estimated.

    Raises:
      OSError: the evaluation cannot be written.
    """
    if refreshed is not None:
      refreshed = self._folder.to_saved(to_named(refreshed))
    if self._folder.writes:
      with self._save_errors():
        self._add_evaluation(step, metrics, refreshed)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("the evaluation is saved")

  def _add_evaluation(
    self, step: int, metrics: dict[str, float], refreshed: Variables | None
  ) -> None:
    self._saving = step
    self._manager.wait_until_finished()
    directory = self._folder.fetch(step)
    if refreshed is not None:
      with ocp.StandardCheckpointer(
        async_options=async_options(), multiprocessing_options=self._folder.processes
      ) as checkpointer:
        checkpointer.save(directory / "refreshed", refreshed, force=True)
    if jax.process_index() == 0:
      (directory / "metrics").mkdir(exist_ok=True)
      write_file(directory / "metrics" / "metrics", json.dumps(metrics))
      parts = "refreshed", "metrics"
      checksums.add_digests(directory, parts)
      self._folder.publish_parts(step, parts)

  def is_evaluated(self, step: int) -> bool:
    """Whether a saved state has its evaluation."""
    return checksums.is_complete(self._directory / str(step), "metrics/metrics")

  @contextlib.contextmanager
  def _save_errors(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax and tensorstore raise all kinds.
      # After one array fails, Orbax's threads may still write others into directories
      # that were deleted. So this deletes again; its own errors are not shown.
      for _ in range(0 if self._folder.is_copied else 20):
        with contextlib.suppress(Exception):
          if jax.process_index() != 0 or not self._folder.delete_unfinished():
            break
        time.sleep(0.1)
      reason = getattr(error, "strerror", None)
      if not reason:  # tensorstore puts the system's reason last.
        reason = str(error).split(" [")[0].rsplit(": ", 1)[-1]
      left = "the checkpoints before it are complete"
      with contextlib.suppress(OSError):
        newest = max(saved_steps(self._workdir), default=None)
        left = "there is no" if newest is None else f"{newest} is the newest"
        left += " complete checkpoint"
      raise OSError(
        f"checkpoint {self._saving} cannot be saved to {self._directory}: {reason}; "
        f"{left}"
      ) from error

  def restore_latest(self, state: S, show: Show = print) -> S:
    """Returns the newest complete state, or `state` itself if there is none.

    Damaged checkpoints are moved to `damaged/` in the run directory.

    Args:
      state: gives structure, shapes and shardings.
      show: called with a message about each checkpoint that is moved.

    Raises:
      ValueError: only weights were saved, by `save_weights`.
      OSError: the checkpoint is damaged.
    """
    if jax.process_index() == 0:
      self._folder.delete_unfinished()
      self._set_damaged_aside(show)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    step = self._newest = max(saved_steps(self._workdir), default=None)
    if step is None:
      return state
    if step == 0:
      raise UserError(
        f"{self._directory} has weights but no training state to resume from; "
        "evaluate them, or train in a new --workdir"
      )
    saved, directory = state.to_saved(), self._folder.fetch(step)
    wanted = shapes_to_restore(directory, saved, self._directory / str(step))
    items = {name: ocp.args.StandardRestore(part) for name, part in wanted.items()}
    self._manager.reload()
    with clean_errors(self._directory / str(step)):
      parts = self._manager.restore(step, args=ocp.args.Composite(**items))
    return state.from_saved(to_keys(saved, dict(parts.items())))

  def _set_damaged_aside(self, show: Show) -> None:
    """Moves damaged checkpoints out of the way.

    Of a checkpoint that is older than the newest complete one, only the metrics are
    checked, because Orbax reads them.
    """
    steps = saved_steps(self._workdir)
    has_digests, is_newest = self._with_digests(steps), True
    for step in reversed(steps):
      if is_newest:
        damage = checksums.find_damage(self._folder.fetch(step), has_digests)
      else:
        stored = self._directory / str(step)
        damage = checksums.find_damage(stored, has_digests, ("metrics",))
      is_newest &= bool(damage)
      if damage:
        aside = self._folder.set_aside(step)
        show(f"checkpoint {step} is damaged: {damage}; it was moved to {aside}")

  def _with_digests(self, steps: Sequence[int]) -> bool:
    """Whether the checkpoints have digests; those of early versions have none."""
    return self._has_digests or any(
      checksums.has_digests(self._directory / str(step)) for step in steps
    )

  def save_weights(self, variables: Variables) -> None:
    """Saves trained weights as step 0, without a training state to resume from."""
    self._save(0, {"model": variables})

  def restore_model(
    self, which: str, sharding: jax.sharding.Sharding | None = None
  ) -> tuple[int, Variables]:
    """Restores the variables to evaluate.

    Args:
      which: "latest", "best" (the highest evaluation), or a step.
      sharding: sharding of every array; None is one device.

    Returns:
      (step, {"params": ..., "batch_stats": ...} in the named layout).

    Raises:
      FileNotFoundError: the state does not exist.
      OSError: the state is damaged.
    """
    steps = saved_steps(self._workdir)
    named = {"latest": lambda: max(steps, default=None), "best": self._best_step}
    step = int(which) if which.isdecimal() else named.get(which, lambda: None)()
    if step is None or step not in steps:
      known = ", ".join(map(str, steps)) or "none"
      raise NotFoundError(
        f"no checkpoint {which!r} in {self._directory}; there are: {known}"
      )
    directory = self._folder.fetch(step)
    self._check_digests(step, directory)

    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(array: StoredArray) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    parts = "refreshed", "evaluated", "model"
    name = next(part for part in parts if (directory / part).exists())
    wanted = jax.tree.map(abstract, read_shapes(directory, name))
    with (
      clean_errors(self._directory / str(step)),
      ocp.StandardCheckpointer(
        multiprocessing_options=self._folder.processes
      ) as checkpointer,
    ):
      return step, checkpointer.restore(directory / name, wanted)

  def _best_step(self) -> int | None:
    """Returns the newest step with the highest value of the metric, if any has one."""
    found = {}
    for step in saved_steps(self._workdir):
      if metrics := self.read_evaluation(step):
        found[step] = metrics.get(self._best, -math.inf)
    return max(found, key=lambda step: (found[step], step), default=None)

  def read_evaluation(self, step: int) -> dict[str, float]:
    """Returns the metrics of a saved state's evaluation; {} if it has none.

    Raises:
      OSError: they are damaged.
    """
    stored = self._directory / str(step)
    self._check_digests(step, stored, ("metrics",))
    path = stored / "metrics" / "metrics"
    found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    return found

  def _check_digests(
    self, step: int, directory: epath.Path, parts: Collection[str] = ()
  ) -> None:
    """Raises `OSError` if a checkpoint, or some of its parts, are damaged."""
    has_digests = self._with_digests(saved_steps(self._workdir))
    if damage := checksums.find_damage(directory, has_digests, parts):
      stored = self._directory / str(step)
      raise OSError(f"checkpoint {stored} is damaged: {damage}; name another one")
