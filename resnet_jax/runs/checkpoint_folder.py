"""Where the checkpoints of a run are: a folder that Orbax writes to, or a bucket."""

import contextlib
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from resnet_jax.runs import bucket_checkpoints
from resnet_jax.runs.literal_path import literal_path
from resnet_jax.runs.lock import Check
from resnet_jax.runs.run_dir import saved_steps
from resnet_jax.runtime.buckets import BucketPath


class CheckpointFolder:
  """Checkpoints in a folder that all processes share; a context manager.

  Attributes:
    stored: path of the checkpoints, for messages and to read small files.
    local: the folder that Orbax writes to.
    writes: whether this process takes part in saving.
    is_copied: whether `local` holds copies only.
    processes: the processes that Orbax waits for.
  """

  writes, is_copied = True, False

  def __init__(self, workdir: str | Path):
    """Takes the run directory."""
    self._workdir = workdir
    self.stored = self.local = literal_path(workdir) / "checkpoints"
    self.processes = ocp.options.MultiprocessingOptions()

  def __enter__(self) -> "CheckpointFolder":
    return self

  def __exit__(self, *exc_info: object) -> None:
    pass

  def to_saved(self, items: Any) -> Any:
    """Returns arrays in the form in which this process saves them."""
    return items

  def check_space(self, items: Any) -> None:
    """Raises `OSError` if the disk is too full, before Orbax's threads fail noisily."""
    free = shutil.disk_usage(self.local).free
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
    if free < needed:
      place = f" in {self.local}, see TMPDIR" if self.is_copied else ""
      raise OSError(
        f"it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free{place}"
      )

  def fetch(self, step: int) -> epath.Path:
    """Returns the folder of a checkpoint on this machine."""
    return self.local / str(step)

  def publish(
    self, step: int, directory: epath.Path, keep: int, best: Callable[[], int | None]
  ) -> None:
    """Called with the folder of a new checkpoint that is complete.

    Args:
      step: completed updates.
      directory: the folder, which Orbax is about to rename.
      keep: number of newest checkpoints to keep.
      best: returns another step to keep.
    """

  def publish_parts(self, step: int, parts: Collection[str]) -> None:
    """Called when parts were added to the folder of a checkpoint."""

  def delete_unfinished(self) -> bool:
    """Removes unfinished checkpoints of failed or killed saves; True if any existed."""
    if not self.local.exists():
      return False
    steps = [self.local / str(step) for step in saved_steps(self._workdir)]
    paths = [path for folder in (self.local, *steps) for path in folder.iterdir()]
    unfinished = [path for path in paths if ocp.utils.TMP_DIR_SUFFIX in path.name]
    for path in unfinished:
      path.rmtree()
    return bool(unfinished)

  def set_aside(self, step: int) -> epath.Path:
    """Moves a checkpoint out of the way; returns its new path."""
    aside = self.stored.parent / "damaged" / f"{step}-{time.time_ns()}"
    aside.parent.mkdir(exist_ok=True)
    (self.stored / str(step)).rename(aside)
    return aside


class CheckpointBucket(CheckpointFolder):
  """Checkpoints in a bucket. Each process has a temporary folder of its own.

  Process 0 alone saves, so it gets all arrays as a whole.
  """

  is_copied = True

  def __init__(self, workdir: str | Path, check: Check):
    """Takes the run directory, and a check before anything is published."""
    super().__init__(workdir)
    assert isinstance(self.stored, BucketPath)
    self._bucket, self._check = self.stored, check
    self._temporary = TemporaryDirectory(prefix="resnet_jax_")
    self.local = literal_path(self._temporary.name)
    process = jax.process_index()
    self.writes = process == 0
    if jax.process_count() > 1:
      self.processes = ocp.options.MultiprocessingOptions(
        primary_host=None,  # No process looks for files of the others.
        active_processes={process},
        barrier_sync_key_prefix=f"process{process}",
      )

  def __exit__(self, *exc_info: object) -> None:
    self._temporary.cleanup()

  def to_saved(self, items: Any) -> Any:
    """Returns whole arrays on the host if several processes hold their parts."""
    return jax.tree.map(_whole, items) if jax.process_count() > 1 else items

  def fetch(self, step: int) -> epath.Path:
    """Returns the folder of a checkpoint, which is copied to this machine once."""
    folder = self.local / str(step)
    if not folder.exists():
      part = self.local / f"{step}{ocp.utils.TMP_DIR_SUFFIX}copy"
      part.mkdir()
      bucket_checkpoints.download(self._bucket / str(step), part)
      part.rename(folder)
    return folder

  def publish(
    self, step: int, directory: epath.Path, keep: int, best: Callable[[], int | None]
  ) -> None:
    """Copies a new checkpoint to the bucket, then deletes those not to be kept."""
    self._check()
    bucket_checkpoints.upload(directory, self._bucket / str(step))
    steps = bucket_checkpoints.complete_steps(self._bucket)
    for old in set(steps).difference(steps[-keep:], [best()]):
      bucket_checkpoints.delete(self._bucket / str(old))

  def publish_parts(self, step: int, parts: Collection[str]) -> None:
    """Copies parts to the bucket that were added to a checkpoint."""
    self._check()
    folder = self.local / str(step)
    bucket_checkpoints.upload(folder, self._bucket / str(step), parts)

  def delete_unfinished(self) -> bool:
    """Removes unfinished checkpoints of failed or killed saves."""
    bucket_checkpoints.delete_unfinished(self._bucket)
    return False

  def set_aside(self, step: int) -> epath.Path:
    """Moves a checkpoint out of the way; returns its new path."""
    aside = self._bucket.parent / "damaged" / f"{step}-{time.time_ns()}"
    bucket_checkpoints.set_aside(self._bucket / str(step), aside)
    with contextlib.suppress(FileNotFoundError):
      (self.local / str(step)).rmtree()
    return aside


def create_folder(workdir: str | Path, check: Check) -> CheckpointFolder:
  """Returns the checkpoints of a run, see the two classes."""
  if isinstance(literal_path(workdir), BucketPath):
    return CheckpointBucket(workdir, check)
  return CheckpointFolder(workdir)


def _whole(array: Any) -> Any:
  """Returns an array as a whole, or the data of a key; all processes take part."""
  if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
    # Orbax would save only this process's part of a key.
    array = jax.random.key_data(array)
  if array.is_fully_addressable:
    return np.asarray(array)
  if array.is_fully_replicated:
    return np.asarray(array.addressable_data(0))
  return multihost_utils.process_allgather(array, tiled=True)
