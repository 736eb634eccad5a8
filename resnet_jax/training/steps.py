"""One update, and the compiled loop over updates."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from resnet_jax import kernels
from resnet_jax.data.batch import Batch
from resnet_jax.data.batches.mixup_cutmix import Mix
from resnet_jax.runs.metrics import Metrics, add_metrics
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array, Bool, Int
from resnet_jax.training.accumulation import accumulate_gradients
from resnet_jax.training.averages import Average
from resnet_jax.training.distillation import BoundChunk, Distillation
from resnet_jax.training.sharpness import Perturb
from resnet_jax.training.state import TrainState
from resnet_jax.training.task_metrics import compute_metrics, zero_metrics
from resnet_jax.training.tasks import Task

Preprocess = Callable[..., jax.Array]
MoveLabels = Callable[[jax.Array, jax.Array], jax.Array]
TakeBatch = Callable[[Any, jax.Array], Batch]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
TRAIN_PROGRAM = "jit_train_chunk"  # Name of the compiled `train_chunk` in traces.


@runtime_checkable
class TrainChunk(Protocol):
  """Compiled `train_chunk`; it donates the memory of its input state."""

  def __call__(
    self, state: TrainState, feed: Any, count: int | Int[Array, ""], size: int = 0, /
  ) -> tuple[TrainState, Metrics]:
    """Applies `count` updates on images of a `size`, see `preprocess`.

    A first call with a new size compiles.
    """


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  task: Task,
  preprocess: Preprocess,
  move_labels: MoveLabels | None = None,
  mix: Mix | None = None,
  perturb: Perturb | None = None,
  accumulate: int = 1,
  average: Average | None = None,
  skip_nonfinite: bool = False,
  distillation: Distillation | None = None,
) -> tuple[TrainState, Metrics]:
  """Applies one update.

  Args:
    state: before the update.
    batch: images as stored, uint8 or uint16.
    task: gives targets, loss and metrics.
    preprocess: (images, key) -> augmented and normalised float32 images.
    move_labels: (labels, key) -> labels, moved as `preprocess` moves the images with
      the same key; None leaves them.
    mix: (key, images, targets) -> mixed images and targets; None mixes nothing.
    perturb: moves the parameters to where SAM computes the gradient of the update;
      metrics and batch-norm statistics stay those of `state.params`. None is no SAM.
    accumulate: number of equal parts to split the batch into. Their gradients are
      computed one after the other and added. Batch norm sees each part on its own.
    average: adds the variables after the update to `state.ema`; None if the state has
      no average.
    skip_nonfinite: if the loss or a gradient is not finite, skip the update: only the
      step counts change.
    distillation: the teacher, computed once for the whole batch; None has no teacher.

  Returns:
    The state after the update, and the batch's metrics in train mode, computed with
    the parameters before the update. "skipped_updates" is 1 if the update was skipped;
    the other metrics are then 0.
  """
  chex.assert_rank(batch["image"], 4)
  assert batch["image"].dtype in (jnp.uint8, jnp.uint16), batch["image"].dtype
  key = jax.random.fold_in(state.key, state.step)
  augment_key, dropout_key = jax.random.split(key)
  batch = batch | {"image": preprocess(batch["image"], augment_key)}
  if move_labels is not None:
    batch |= {"label": move_labels(batch["label"], augment_key)}
  if mix is not None:
    mix_key = jax.random.fold_in(key, 2)
    targets = task.targets(batch["label"])
    images, targets = mix(mix_key, batch["image"], targets)
    batch |= {"image": images, "target": targets}
  if distillation is not None:
    batch |= {"teacher_logits": distillation.logits(batch["image"])}
  count = jnp.sum(batch["mask"], dtype=jnp.float32)

  def loss_fn(
    params: dict[str, Any], batch_stats: dict[str, Any], batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[dict[str, Any], Metrics]]:
    logits, updates = state.apply_fn(
      {"params": params, "batch_stats": batch_stats},
      batch["image"],
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": key},
    )
    metrics = compute_metrics(task, logits, batch, batch.get("target"), train=True)
    if distillation is not None:
      outputs = logits, batch["teacher_logits"]
      total = distillation.total_loss(metrics["loss"], *outputs, batch["mask"])
      metrics = metrics | {"loss": total}
    return metrics["loss"] / count, (updates.get("batch_stats", {}), metrics)

  gradient = jax.grad(loss_fn, has_aux=True)

  def gradient_at(params: Any) -> tuple[Any, dict[str, Any], Metrics]:
    args = state.batch_stats, batch, dropout_key
    if accumulate > 1:
      return accumulate_gradients(partial(gradient, params), *args, accumulate)
    grads, (batch_stats, metrics) = gradient(params, *args)
    return grads, batch_stats, metrics

  grads, batch_stats, metrics = gradient_at(state.params)
  if perturb is not None:
    grads, _, _ = gradient_at(perturb(state.params, grads))
  before = state
  # Flax declares no types for this method.
  state = state.apply_gradients(  # type: ignore[no-untyped-call]
    grads=grads, batch_stats=batch_stats
  )
  if average is not None:
    assert state.ema is not None
    state = state.replace(ema=average(state.ema, state.variables, state.step))
  if not skip_nonfinite:
    return state, metrics | {"skipped_updates": jnp.zeros(())}
  is_finite = all_finite((metrics["loss"], grads))

  def keep(new: jax.Array, old: jax.Array) -> jax.Array:
    # Step counts still advance: the learning rate stays a function of the step.
    is_float = jnp.issubdtype(new.dtype, jnp.floating)
    return jnp.where(is_finite, new, old) if is_float else new

  metrics = {name: jnp.where(is_finite, value, 0) for name, value in metrics.items()}
  metrics["skipped_updates"] = 1.0 - is_finite
  return jax.tree.map(keep, state, before), metrics


def all_finite(tree: Any) -> Bool[Array, ""]:
  """Whether every number of a tree is finite."""
  return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def train_chunk(
  state: TrainState,
  feed: Any,
  count: int | Int[Array, ""],
  *,
  train_step: Step,
  take_batch: TakeBatch,
  task: Task,
) -> tuple[TrainState, Metrics]:
  """Applies `count` updates in one call; metrics are summed over them.

  The length of the loop is an argument, not a shape. One compiled program therefore
  runs any number of steps from any step, and a resumed run is bit-identical to an
  uninterrupted one. With `count` 0 the state is returned unchanged.

  Args:
    state: before the first update.
    feed: the data from which `take_batch` takes images.
    count: number of updates, >= 0.
    train_step: (state, batch) -> (state, metrics).
    take_batch: (feed, step) -> batch; `step` is the number of completed updates.
    task: defines the metrics.
  """

  def body(
    _: jax.Array, carry: tuple[TrainState, Metrics]
  ) -> tuple[TrainState, Metrics]:
    state, total = carry
    state, metrics = train_step(state, take_batch(feed, state.step))
    return state, add_metrics(total, metrics)

  zeros = zero_metrics(task) | {"skipped_updates": jnp.zeros(())}
  after: tuple[TrainState, Metrics] = lax.fori_loop(0, count, body, (state, zeros))
  return after


def compile_train_chunk(
  *,
  task: Task,
  preprocess: Preprocess,
  take_batch: TakeBatch,
  sharding: jax.sharding.Sharding,
  state_sharding: Any = None,
  dtype: DTypeLike = jnp.float32,
  kernel_choice: str = "xla",
  distillation: Distillation | None = None,
  **options: Any,
) -> TrainChunk:
  """Returns jitted `train_chunk(state, feed, count, size=0)`.

  The function donates the memory of its input state. It compiles for each `size`.

  Args:
    task: gives targets, loss and metrics.
    preprocess: see `train_step`; it gets `size` as an argument if that is not 0.
    take_batch: see `train_chunk`; it places each batch on the devices.
    sharding: sharding of the metrics.
    state_sharding: shardings of the state's leaves; None is `sharding`.
    dtype: dtype of the model.
    kernel_choice: "xla" or "native", from `kernels.resolve`.
    distillation: see `train_step`; its arrays are of the host.
    **options: further arguments of `train_step`.
  """
  shardings = state_sharding or sharding, sharding

  def chunk(
    state: TrainState,
    feed: Any,
    count: Int[Array, ""],
    size: int = 0,
    teacher: Distillation | None = None,
  ) -> tuple[TrainState, Metrics]:
    resized = partial(preprocess, size=size) if size else preprocess
    parts = {"task": task, "distillation": teacher, "preprocess": resized, **options}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
      state, metrics = train_step(state, batch, **parts)
      # Without this, the loop could shard the parameters like the optimiser's state.
      return lax.with_sharding_constraint(state, shardings[0]), metrics

    return train_chunk(
      state, feed, count, train_step=step, take_batch=take_batch, task=task
    )

  chunk.__name__ = TRAIN_PROGRAM.removeprefix("jit_")
  device: jax.Device = next(iter(sharding.device_set))
  compiled = compilation.jit(
    kernels.traced_with(kernel_choice, chunk),
    device.platform,
    dtype=dtype,
    donate_argnums=0,
    static_argnums=3,
    out_shardings=shardings,
  )
  if distillation is None:
    return compiled
  return BoundChunk(compiled, distillation, sharding)
