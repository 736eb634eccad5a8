"""Loads batches of images ahead of time, in threads or processes.

Host side only: nothing here touches a device, so that worker processes start quickly.
Letters: N images of a split, B batch, S side of the images, C channels.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import grain
import numpy as np
from absl import flags

from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.data import ImageSource, label_spec
from resnet_jax.data.images.errors import ImageError, image_name
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.labels import LabelSpec


@runtime_checkable
class Transform(Protocol):
  """Maps the content of an image file to pixels. It must be picklable."""

  @property
  def size(self) -> int: ...

  @property
  def pixels(self) -> PixelFormat: ...

  def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray: ...


@runtime_checkable
class PairTransform(Protocol):
  """Maps an image file and its mask or boxes to pixels and a label of one shape.

  It must be picklable.
  """

  @property
  def size(self) -> int: ...

  @property
  def pixels(self) -> PixelFormat: ...

  @property
  def label(self) -> LabelSpec: ...

  def pair(
    self, data: bytes, label: Any, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]: ...


def batch_label(
  source: ImageSource, transform: Transform | PairTransform
) -> tuple[np.dtype[Any], tuple[int, ...]]:
  """Returns dtype and shape of the label of an image in a batch."""
  spec = label_spec(source)
  if _is_dense(spec) and isinstance(transform, PairTransform):
    spec = transform.label
  return spec.dtype, tuple(size for size in spec.shape if size is not None)


@runtime_checkable
class Order(Protocol):
  """The order of images: [i] is the index of image i. It must be picklable."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> int: ...


class HostBatch(TypedDict):
  """The part of a batch that this process loads.

  Attributes:
    image: [B, S, S, C] uint8 or uint16, see `PixelFormat`.
    label: [B, ...], see `LabelSpec`.
    mask: [B] bool, False where an image is missing.
    errors: (index, text) of each image that could not be read.
  """

  image: np.ndarray
  label: np.ndarray
  mask: np.ndarray
  errors: list[tuple[int, str]]


@dataclasses.dataclass(frozen=True)
class Batches:
  """The batches of a split.

  Batch [i] has the same content in every worker, and in any order of access.

  Attributes:
    source: the images.
    transform: applied to each image, with random numbers that are a function of (seed,
      position in the stream).
    order: position in the stream -> index of an image; N and above is padding.
    batch_size: over all processes.
    rows: (first, last + 1) row of each batch that this process loads.
    seed: seed of the transform.
    replace: whether the next image replaces an unreadable one. If not, the row of an
      unreadable image is masked.
    num_threads: number of threads that decode.
  """

  source: ImageSource
  transform: Transform | PairTransform
  order: Order
  batch_size: int
  rows: tuple[int, int]
  seed: int
  replace: bool
  num_threads: int

  def __len__(self) -> int:
    return len(self.order) // self.batch_size

  def __getitem__(self, number: int) -> HostBatch:
    first, last = (number * self.batch_size + row for row in self.rows)
    rows, side, pixels = last - first, self.transform.size, self.transform.pixels
    dtype, shape = batch_label(self.source, self.transform)
    batch: HostBatch = {
      "image": np.empty((rows, side, side, pixels.channels), pixels.dtype),
      "label": np.zeros((rows, *shape), dtype),
      "mask": np.zeros(rows, bool),
      "errors": [],
    }
    # All generators are made here, and each thread gets one task with many rows: a task
    # per image would cost more. Philox is the cheapest generator to make, because it
    # uses its key unchanged.
    keys = np.array([(self.seed, i) for i in range(first, last)], np.uint64)
    work = [
      (int(self.order[first + row]), np.random.Generator(np.random.Philox(key=key)))
      for row, key in enumerate(keys)
    ]
    load = functools.partial(self._load, batch, work)
    shares = (range(i, rows, self.num_threads) for i in range(self.num_threads))
    for errors in _pool(self.num_threads).map(load, shares):
      batch["errors"] += errors
    return batch

  def _load(
    self, batch: HostBatch, work: list[tuple[int, np.random.Generator]], rows: range
  ) -> list[tuple[int, str]]:
    """Loads rows of a batch from their (index, generator); returns the errors."""
    errors: list[tuple[int, str]] = []
    num_classes, spec = len(self.source.class_names), label_spec(self.source)
    for row in rows:
      index, rng = work[row]
      tries = min(len(self.source), 100) if self.replace else 1
      if index >= len(self.source):
        tries = 0
      for other in range(index, index + tries):
        other %= len(self.source)
        image_name.set(functools.partial(self.source.name, other))
        try:
          data, label = self.source[other]
          if _is_dense(spec):
            both: Any = self.transform
            batch["image"][row], label = both.pair(data, label, rng)
          else:
            _check_label(label, spec, num_classes)
            one: Any = self.transform
            batch["image"][row] = one(data, rng)
        except ImageError as error:
          errors.append((other, f"{self.source.name(other)}: {error}"))
          continue
        batch["label"][row], batch["mask"][row] = label, True
        break
      else:
        batch["image"][row] = 0
    return errors


def _is_dense(spec: LabelSpec) -> bool:
  """Whether a label belongs to places in the image, and moves with it."""
  return spec.kind in DENSE_LABELS


def _check_label(label: Any, spec: LabelSpec, num_classes: int) -> None:
  """Raises `ImageError` if the label of an image is not one of the data set."""
  if spec.kind == "class":
    lowest = 0 if num_classes else -1  # Images without classes have the label -1.
    if not lowest <= label < num_classes:
      raise ImageError(f"its label {label} must be in [{lowest}, {num_classes})")
  elif np.shape(label) != spec.shape or not np.isfinite(label).all():
    raise ImageError(f"its label {label} must be {spec.shape[0]} finite numbers")


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
  return ThreadPoolExecutor(num_threads, "decode")


def iterate(batches: Batches, start: int, num_workers: int) -> Generator[HostBatch]:
  """Yields batches from number `start` on, loading ahead.

  Args:
    batches: see `Batches`.
    start: number of the first batch.
    num_workers: number of worker processes; 0 uses the threads of this process.

  Raises:
    OSError: a worker process died.
  """
  with tempfile.TemporaryDirectory(prefix="resnet_jax_") as pids:
    yield from _iterate(batches, start, num_workers, pids)


def _iterate(
  batches: Batches, start: int, num_workers: int, pids: str
) -> Generator[HostBatch]:
  """Like `iterate`; each worker creates a file in `pids` named after its process id."""
  dataset = grain.MapDataset.source(batches)[start:]
  # Two batches at a time, each decoded by all threads: one is ready while the other is
  # being loaded.
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
  ahead = dataset.to_iter_dataset(options)
  if num_workers:
    if not flags.FLAGS.is_parsed():  # The program does not use absl's flags.
      flags.FLAGS.mark_as_parsed()
    ahead = ahead.mp_prefetch(
      grain.MultiprocessingOptions(num_workers),
      worker_init_fn=functools.partial(_start_worker, pids),
    )
  iterator = iter(ahead)
  try:
    yield from map(_copied, iterator) if num_workers else iterator
  except RuntimeError as error:
    started = os.listdir(pids)
    if len(started) == num_workers and all(map(_is_alive, started)):
      raise  # The error comes from a worker that is alive.
    raise OSError(
      f"a worker process that loads images died, perhaps because memory or /dev/shm "
      f"was full; lower config.data.num_workers={num_workers} or set it to 0 ({error})"
    ) from error
  finally:
    iterator.close()


def _copied(batch: HostBatch) -> HostBatch:
  """Copies a batch out of memory that is shared with a worker.

  The shared memory is freed together with the arrays in it. An exception may keep such
  arrays alive until the process ends. Then the memory is freed late, with a warning.
  """
  return {
    "image": np.array(batch["image"]),
    "label": np.array(batch["label"]),
    "mask": np.array(batch["mask"]),
    "errors": batch["errors"],
  }


def _is_alive(pid: str) -> bool:
  try:
    os.kill(int(pid), 0)
  except ProcessLookupError:
    return False
  return True


def _start_worker(pids: str, index: int, count: int) -> None:
  """Makes a worker process ignore signals and end with the main process.

  The keyboard and schedulers send their signals to every process of a run.
  """
  Path(pids, str(os.getpid())).touch()
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def count_threads() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
