"""The states of a run on disk, to go on from or to evaluate.

`checkpoints/STEP` in the run directory holds "model" and "training". "model" is all
that evaluation needs; where that is an average, or has other statistics, it is in
"evaluated" beside it.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from resnet_jax.models.scan_layout import to_named
from resnet_jax.models.variables import Variables
from resnet_jax.runs import checksums
from resnet_jax.runs.facts import read_facts
from resnet_jax.runtime.errors import NotFoundError, UserError

S = TypeVar("S", bound="State")


@runtime_checkable
class State(Protocol):
  """The state of a run, as a store sees it."""

  @property
  def variables(self) -> Variables:
    """What the model is applied to."""

  def to_saved(self) -> dict[str, Any]:
    """Returns the "model" and the "training" part, as pytrees of named blocks."""

  def from_saved(self: S, parts: Mapping[str, Any]) -> S:
    """Returns this state with the two parts replaced."""


Show = Callable[[str], None]  # Of a line of text to the person who watches.


@runtime_checkable
class _Stored(Protocol):
  """What Orbax tells of an array in a checkpoint."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...


class CheckpointStore:
  """The states of one run, saved in the background; a context manager.

  Its end waits for the last save, and raises `OSError` if that fails.
  """

  def __init__(self, workdir: str | Path, keep: int = 1, best: str = ""):
    """Opens `workdir/checkpoints`, or makes it.

    Args:
      workdir: the run directory.
      keep: number of newest states kept, next to the best one.
      best: the metric whose highest value in an evaluation makes a state the best; ""
        is the one that the run was trained with.
    """
    best = best or read_facts(workdir).best_metric

    def value(metrics: dict[str, float]) -> float:
      return metrics[best]

    policies = checkpoint_managers
    keep_best = policies.BestN(
      get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False
    )
    self._saving = 0
    self._directory = epath.Path(workdir).resolve() / "checkpoints"
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        async_options=ocp.AsyncOptions(post_finalization_callback=self._digest),
        best_fn=value,
        preservation_policy=policies.AnyPreservationPolicy(
          [policies.LatestN(keep), keep_best]
        ),
      ),
      item_names=("model", "training", "evaluated"),
    )

  def _digest(self) -> None:
    """Adds digests to the checkpoint that is about to be put in its place."""
    if jax.process_index() == 0:
      for directory in self._directory.glob(f"{self._saving}.orbax*"):
        checksums.write_digests(directory)

  def __enter__(self) -> "CheckpointStore":
    return self

  def __exit__(self, *exc_info: object) -> None:
    with self._save_errors():
      self._manager.close()

  def save(
    self,
    step: int,
    state: State,
    metrics: dict[str, float] | None = None,
    evaluated: Variables | None = None,
  ) -> None:
    """Saves a state; returns once it is copied, before it is written.

    Args:
      step: completed updates.
      state: may be given away (donated) afterwards.
      metrics: its evaluation, if there was one: only such states can be the best.
      evaluated: what is evaluated; kept apart if it is not the state's own variables.

    Raises:
      OSError: the save before this one failed, such as for want of space.
    """
    if step == self._manager.latest_step():
      return
    items, own = state.to_saved(), state.variables
    if evaluated is not None and any(evaluated[name] is not own[name] for name in own):
      items["evaluated"] = to_named(evaluated)
    self._save(step, items, metrics)

  def _save(
    self, step: int, items: dict[str, Any], metrics: dict[str, float] | None = None
  ) -> None:
    saved = {name: ocp.args.StandardSave(x) for name, x in items.items()}
    with self._save_errors():
      self._manager.wait_until_finished()  # `_digest` has the name of one at a time.
      self._saving = step
      self._check_space(items)
      self._manager.save(step, args=ocp.args.Composite(**saved), metrics=metrics)

  def _check_space(self, items: dict[str, Any]) -> None:
    """Raises `OSError` if a disk is nearly full; Orbax's threads do it noisily."""
    if "://" in str(self._directory):
      return
    free = shutil.disk_usage(self._directory).free
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
    if free < needed:
      raise OSError(f"it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free")

  @contextlib.contextmanager
  def _save_errors(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax and tensorstore raise all kinds.
      # After one array failed, Orbax's threads still write others, for which they also
      # make directories anew. What is left at last does not hide why the save failed.
      for _ in range(20):
        with contextlib.suppress(Exception):
          if not self._delete_unfinished():
            break
        time.sleep(0.1)
      # tensorstore tells the operating system's reason last.
      reason = str(error).split(" [os_error")[0].rsplit(": ", 1)[-1]
      newest = max(ocp.utils.checkpoint_steps(self._directory), default=None)
      left = "none is" if newest is None else f"{newest} is the newest that is"
      raise OSError(
        f"checkpoint {self._saving} cannot be saved to {self._directory}: {reason}; "
        f"{left} there to go on from"
      ) from error

  def _delete_unfinished(self) -> bool:
    """Removes what a save left that failed or was killed; returns if there was any."""
    if jax.process_index() != 0:
      return False
    unfinished = list(self._directory.glob("*.orbax-checkpoint-tmp*"))
    for path in unfinished:
      path.rmtree()
    return bool(unfinished)

  def restore_latest(self, state: S, show: Show = print) -> S:
    """Returns the newest whole state, or `state` itself if there is none.

    Damaged ones are moved to `damaged/` in the run directory.

    Args:
      state: gives structure, shapes and shardings.
      show: told of what is moved.

    Raises:
      ValueError: only weights were saved, by `save_weights`.
      OSError: it is damaged.
    """
    self._delete_unfinished()
    if jax.process_index() == 0:
      self._set_damaged_aside(show)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    self._manager.reload()
    step = self._manager.latest_step()
    if step is None:
      return state
    if step == 0:
      raise UserError(
        f"{self._directory} has weights but no state of training to go on "
        "from; evaluate them, or train in a new --workdir"
      )
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, state.to_saved())
    items = {name: ocp.args.StandardRestore(part) for name, part in wanted.items()}
    for name, part in wanted.items():
      self._check_shapes(step, name, part)
    with self._clean_errors(step):
      parts = self._manager.restore(step, args=ocp.args.Composite(**items))
    return state.from_saved(parts)

  def _set_damaged_aside(self, show: Show) -> None:
    """Moves the newest checkpoints, up to a whole one, out of the way."""
    for step in sorted(self._manager.all_steps(), reverse=True):
      damage = checksums.find_damage(self._directory / str(step))
      if not damage:
        return
      aside = self._directory.parent / "damaged" / f"{step}-{time.time_ns()}"
      aside.parent.mkdir(exist_ok=True)
      (self._directory / str(step)).rename(aside)
      show(f"checkpoint {step} is damaged: {damage}; it was moved to {aside}")

  def save_weights(self, variables: Variables) -> None:
    """Saves trained weights as step 0, without a state of training to go on from."""
    self._save(0, {"model": variables})

  def restore_model(
    self, which: str, sharding: jax.sharding.Sharding | None = None
  ) -> tuple[int, Variables]:
    """Restores what evaluation needs.

    Args:
      which: "latest", "best" (the highest evaluation), or a step.
      sharding: of every array; None is one device.

    Returns:
      (step, {"params": ..., "batch_stats": ...} in the named layout).

    Raises:
      FileNotFoundError: there is no such state.
      OSError: it is damaged.
    """
    steps = self._manager.all_steps()
    named = {"latest": self._manager.latest_step, "best": self._manager.best_step}
    step = int(which) if which.isdecimal() else named.get(which, lambda: None)()
    if step is None or step not in steps:
      known = ", ".join(map(str, sorted(steps))) or "none"
      raise NotFoundError(
        f"no checkpoint {which!r} in {self._directory}; there are: {known}"
      )

    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(array: _Stored) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    directory = self._directory / str(step)
    if damage := checksums.find_damage(directory):
      raise OSError(f"checkpoint {directory} is damaged: {damage}; name another one")
    name = "evaluated" if (directory / "evaluated").exists() else "model"
    saved = self._read_shapes(step, name)
    item = ocp.args.StandardRestore(jax.tree.map(abstract, saved))
    with self._clean_errors(step):
      items = ocp.args.Composite(**{name: item})
      return step, self._manager.restore(step, args=items)[name]

  def _read_shapes(self, step: int, name: str) -> Any:
    """Returns a part of a checkpoint with a `_Stored` for each array."""
    directory = self._directory / str(step) / name
    with self._clean_errors(step), ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.metadata(directory).item_metadata.tree

  def _check_shapes(self, step: int, name: str, wanted: Any) -> None:
    """Raises `UserError` if a part of a checkpoint has other arrays than are wanted."""
    found, own = _shapes(self._read_shapes(step, name)), _shapes(wanted)
    for path in sorted(found.keys() | own.keys()):
      has, takes = found.get(path, "nothing"), own.get(path, "nothing")
      if has != takes:
        raise UserError(
          f"checkpoint {self._directory / str(step)} is of another network, optimiser "
          f"or kind of images: as {path} it has {has}, and the run takes {takes}; "
          "resume with what the run was started with, or train in a new --workdir"
        )

  @contextlib.contextmanager
  def _clean_errors(self, step: int) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax and tensorstore raise all kinds.
      raise OSError(
        f"checkpoint {self._directory / str(step)} cannot be restored: it is "
        f"damaged; delete it to go on from the one before ({str(error)[:120]})"
      ) from error


def _shapes(tree: Any) -> dict[str, str]:
  """Returns the shape of each array of a tree, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): str(list(leaf.shape))
    for path, leaf in leaves
  }
