"""Batch-norm statistics computed anew from training batches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.training.steps import Preprocess, TakeBatch


def compile_statistics_chunk(
  *,
  model: ResNet,
  preprocess: Preprocess,
  take_batch: TakeBatch,
  sharding: jax.sharding.Sharding,
) -> Callable:
  """Returns jitted (variables, feed, count, first, key) -> sums of moments.

  The sums are over batches `first` to `first + count - 1` of `feed`: of the mean and of
  the mean square of each batch norm's input, for `precise_statistics`.

  Args:
    model: with batch norms.
    preprocess: see `train_step`.
    take_batch: see `train_chunk`.
    sharding: of the result.
  """
  # The running values after a batch are then those of the batch, the whole of it.
  model = model.clone(norm=partial(model.norm, momentum=0.0, groups=1))

  def chunk(variables: Variables, feed: Any, count: int, first: int, key: jax.Array):
    def body(i, sums):
      batch_key = jax.random.fold_in(key, i)
      images = preprocess(take_batch(feed, i)["image"], batch_key)
      _, updates = model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": batch_key},
      )
      moments = _map_statistics(
        lambda mean, var: (mean, var + mean**2), updates["batch_stats"]
      )
      return jax.tree.map(jnp.add, sums, moments)

    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    return lax.fori_loop(first, first + count, body, zeros)

  return compilation.jit(chunk, dtype=model.dtype, out_shardings=sharding)


def precise_statistics(sums: Any, num_batches: int) -> Any:
  """Returns `batch_stats` of all batches together (Wu & Johnson 2021, section 3).

  Args:
    sums: of `compile_statistics_chunk`.
    num_batches: that they are over.
  """
  means = jax.tree.map(lambda x: x / num_batches, sums)
  # The difference of a channel that hardly varies may round to less than 0.
  return _map_statistics(
    lambda mean, square: (mean, jnp.maximum(square - mean**2, 0)), means
  )


def _map_statistics(function: Callable, tree: Any) -> Any:
  """Applies `function` to the (mean, var) of each batch norm in `batch_stats`."""
  if "mean" not in tree:
    return {name: _map_statistics(function, part) for name, part in tree.items()}
  mean, var = function(tree["mean"], tree["var"])
  return {"mean": mean, "var": var}
