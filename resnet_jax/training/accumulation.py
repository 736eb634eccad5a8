"""Gradient accumulation: a batch in parts, one after the other, which saves memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.data.batch import Batch
from resnet_jax.runs.metrics import Metrics, add_metrics

# (batch_stats, batch, key) -> gradients, (batch_stats, metrics).
Gradient = Callable[
  [dict[str, Any], Batch, jax.Array], tuple[Any, tuple[dict[str, Any], Metrics]]
]


def accumulate_gradients(
  gradient: Gradient,
  batch_stats: dict[str, Any],
  batch: Batch,
  key: jax.Array,
  parts: int,
) -> tuple[Any, dict[str, Any], Metrics]:
  """Adds up the gradients and metrics of the parts of a batch.

  Args:
    gradient: (batch_stats, batch, key) -> gradients, (batch_stats, metrics).
    batch_stats: the batch-norm statistics before the batch.
    batch: the whole batch. Part i has the rows i, i + parts, ..., so that each part is
      spread over all devices.
    key: PRNG key of dropout.
    parts: number of parts, a divisor of B.
  """
  split = jax.tree.map(
    lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch
  )

  def body(
    carry: tuple[dict[str, Any], Any, Metrics], part: tuple[Batch, jax.Array]
  ) -> tuple[tuple[dict[str, Any], Any, Metrics], None]:
    batch_stats, grads, metrics = carry
    more_grads, (batch_stats, more) = gradient(batch_stats, *part)
    grads = jax.tree.map(jnp.add, grads, more_grads)
    return (batch_stats, grads, add_metrics(metrics, more)), None

  inputs = split, jax.random.split(key, parts)
  # The sums start at zero. To start them with the first part's values would compile the
  # gradient twice: once before the loop, once in it.
  first = jax.tree.map(lambda x: x[0], inputs)
  shapes = jax.eval_shape(gradient, batch_stats, *first)
  grads, (_, metrics) = jax.tree.map(jnp.zeros_like, shapes)
  carry, _ = lax.scan(body, (batch_stats, grads, metrics), inputs)
  batch_stats, grads, metrics = carry
  return grads, batch_stats, metrics
