"""One update, one evaluation, and the compiled loops over them.

All that is compiled for the hot path. `metrics.py` defines `Batch` and `Metrics`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax import backend
from resnet_jax.metrics import (
  Batch,
  Metrics,
  add_metrics,
  compute_metrics,
  zero_metrics,
)
from resnet_jax.train_state import TrainState, Variables

Preprocess = Callable[..., jax.Array]
TakeBatch = Callable[[Any, jax.Array], Batch]


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  preprocess: Preprocess,
  label_smoothing: float = 0.0,
) -> tuple[TrainState, Metrics]:
  """Applies one update.

  Args:
    state: before the update.
    batch: images as stored, uint8.
    preprocess: (images, key) -> augmented and normalised float32 images.
    label_smoothing: see `compute_metrics`.

  Returns:
    The state after it, and metrics of the batch in train mode, before it.
  """
  chex.assert_rank(batch["image"], 4)
  chex.assert_type(batch["image"], jnp.uint8)
  key = jax.random.fold_in(state.key, state.step)
  augment_key, dropout_key = jax.random.split(key)
  images = preprocess(batch["image"], augment_key)

  def loss_fn(params):
    variables = state.variables | {"params": params}
    logits, updates = state.apply_fn(
      variables,
      images,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": dropout_key},
    )
    metrics = compute_metrics(logits, batch, label_smoothing)
    batch_stats = updates.get("batch_stats", {})
    return metrics["loss"] / metrics["count"], (batch_stats, metrics)

  grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
  return state.apply_gradients(grads=grads, batch_stats=batch_stats), metrics


def eval_step(
  variables: Variables, batch: Batch, *, apply_fn: Callable, preprocess: Preprocess
) -> Metrics:
  """Metrics of a batch by the running batch-norm statistics.

  Args:
    variables: {"params": ..., "batch_stats": ...}.
    batch: images as stored, uint8.
    apply_fn: the model's `apply`.
    preprocess: images -> normalised float32 images.
  """
  logits = apply_fn(variables, preprocess(batch["image"]), train=False)
  return compute_metrics(logits, batch)


def train_chunk(
  state: TrainState,
  feed: Any,
  count: int,
  *,
  train_step: Callable,
  take_batch: TakeBatch,
  num_classes: int,
) -> tuple[TrainState, Metrics]:
  """Applies `count` updates in one call; metrics are summed over them.

  A loop whose length is an argument, not a shape: any stretch of a run, from any
  step, is the same compiled program, so that where a run was cut leaves no trace in
  its bits. With `count` 0 the state comes back as it was.

  Args:
    state: before the first update.
    feed: where `take_batch` finds images.
    count: number of updates, >= 0.
    train_step: (state, batch) -> (state, metrics).
    take_batch: (feed, step) -> the batch of the update after `step` completed ones.
    num_classes: number of logits.
  """

  def body(_, carry):
    state, total = carry
    state, metrics = train_step(state, take_batch(feed, state.step))
    return state, add_metrics(total, metrics)

  return lax.fori_loop(0, count, body, (state, zero_metrics(num_classes)))


def eval_chunk(
  variables: Variables,
  feed: Any,
  count: int,
  *,
  eval_step: Callable,
  take_batch: TakeBatch,
  num_classes: int,
) -> Metrics:
  """Sums the metrics of batches 0 to `count` - 1 of `feed` in one call."""

  def body(i, total):
    return add_metrics(total, eval_step(variables, take_batch(feed, i)))

  return lax.fori_loop(0, count, body, zero_metrics(num_classes))


def compile_train_chunk(
  *,
  preprocess: Preprocess,
  take_batch: TakeBatch,
  num_classes: int,
  label_smoothing: float,
  sharding: jax.sharding.Sharding,
) -> Callable:
  """Returns jitted `train_chunk(state, feed, count)`.

  It takes over the memory of the state given to it.

  Args:
    preprocess: see `train_step`.
    take_batch: see `train_chunk`; it places each batch on the devices.
    num_classes: number of logits.
    label_smoothing: see `train_step`.
    sharding: of the state and the metrics.
  """
  step = partial(train_step, preprocess=preprocess, label_smoothing=label_smoothing)
  chunk = partial(
    train_chunk, train_step=step, take_batch=take_batch, num_classes=num_classes
  )
  return backend.jit(chunk, donate_argnums=0, out_shardings=sharding)


def compile_eval_chunk(
  *,
  apply_fn: Callable,
  preprocess: Preprocess,
  take_batch: TakeBatch,
  num_classes: int,
  sharding: jax.sharding.Sharding,
) -> Callable:
  """Returns jitted `eval_chunk(variables, feed, count)`; arguments as above."""
  step = partial(eval_step, apply_fn=apply_fn, preprocess=preprocess)
  chunk = partial(
    eval_chunk, eval_step=step, take_batch=take_batch, num_classes=num_classes
  )
  return backend.jit(chunk, out_shardings=sharding)
