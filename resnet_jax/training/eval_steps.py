"""The evaluation of one batch, and the compiled loop over batches."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from resnet_jax import kernels
from resnet_jax.data.batch import Batch
from resnet_jax.models.variables import Variables
from resnet_jax.runs.metrics import Metrics, add_metrics
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array, Int
from resnet_jax.training.steps import Preprocess, TakeBatch
from resnet_jax.training.task_metrics import compute_metrics, zero_metrics
from resnet_jax.training.tasks import Task

EvalStep = Callable[[Variables, Batch], Metrics]
Apply = Callable[..., Any]  # A module's `apply`.


@runtime_checkable
class EvalChunk(Protocol):
  """Compiled `eval_chunk`."""

  def __call__(
    self, variables: Variables, feed: Any, count: int | Int[Array, ""], /
  ) -> Metrics:
    """Sums the metrics of `count` batches."""


def eval_step(
  variables: Variables,
  batch: Batch,
  *,
  task: Task,
  apply_fn: Apply,
  preprocess: Preprocess,
) -> Metrics:
  """Computes a batch's metrics with the running batch-norm statistics.

  Args:
    variables: {"params": ..., "batch_stats": ...}.
    batch: images as stored, uint8 or uint16.
    task: gives loss and metrics.
    apply_fn: the model's `apply`.
    preprocess: images -> normalised float32 images.
  """
  logits = apply_fn(variables, preprocess(batch["image"]), train=False)
  return compute_metrics(task, logits, batch)


def eval_batch(
  variables: Variables,
  feed: Any,
  number: Int[Array, ""],
  *,
  task: Task,
  apply_fn: Apply,
  preprocess: Preprocess,
  take_batch: TakeBatch,
) -> tuple[Metrics, dict[str, jax.Array]]:
  """Returns a batch's metrics and `Task.found`, with "mask"; see `eval_step`."""
  batch = take_batch(feed, number)
  outputs = apply_fn(variables, preprocess(batch["image"]), train=False)
  own: Any = task
  found = own.found(outputs, batch["label"]) | {"mask": batch["mask"]}
  return compute_metrics(task, outputs, batch), found


def eval_chunk(
  variables: Variables,
  feed: Any,
  count: int | Int[Array, ""],
  *,
  eval_step: EvalStep,
  take_batch: TakeBatch,
  task: Task,
) -> Metrics:
  """Sums the metrics of batches 0 to `count` - 1 of `feed` in one call."""

  def body(i: jax.Array, total: Metrics) -> Metrics:
    return add_metrics(total, eval_step(variables, take_batch(feed, i)))

  total: Metrics = lax.fori_loop(0, count, body, zero_metrics(task))
  return total


def compile_eval_chunk(
  *,
  task: Task,
  apply_fn: Apply,
  preprocess: Preprocess,
  take_batch: TakeBatch,
  sharding: jax.sharding.Sharding,
  dtype: DTypeLike = jnp.float32,
  kernel_choice: str = "xla",
) -> EvalChunk:
  """Returns jitted `eval_chunk`; see `compile_train_chunk` and `eval_step`.

  If the task has `found`, it is `eval_batch`.
  """
  function: Callable[..., Any]
  parts: dict[str, Any] = {"task": task, "apply_fn": apply_fn, "preprocess": preprocess}
  if hasattr(task, "found"):
    function = partial(eval_batch, **parts, take_batch=take_batch)
  else:
    step = partial(eval_step, **parts)
    function = partial(eval_chunk, eval_step=step, take_batch=take_batch, task=task)
  return compilation.jit(
    kernels.traced_with(kernel_choice, function), dtype=dtype, out_shardings=sharding
  )
