"""Re-estimates batch-norm statistics from training batches."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from resnet_jax import kernels
from resnet_jax.config.plan import Plan
from resnet_jax.data import Dataset
from resnet_jax.models.building import with_norm
from resnet_jax.models.groups import frozen_mask
from resnet_jax.models.variables import Change, Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array, Int, PRNGKeyArray
from resnet_jax.training.steps import Preprocess, TakeBatch

# {"mean": ..., "var": ...} of each batch norm, nested like the modules.
Statistics = dict[str, Any]
_ChangeMoments = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@runtime_checkable
class StatisticsChunk(Protocol):
  """What `compile_statistics_chunk` returns."""

  def __call__(
    self,
    variables: Variables,
    feed: Any,
    count: int | Int[Array, ""],
    first: int | Int[Array, ""],
    key: PRNGKeyArray,
    /,
  ) -> Statistics:
    """Sums the moments of `count` batches, starting at batch `first`."""


def compile_statistics_chunk(
  *,
  model: nn.Module,
  preprocess: Preprocess,
  take_batch: TakeBatch,
  sharding: jax.sharding.Sharding,
  kernel_choice: str = "xla",
) -> StatisticsChunk:
  """Returns jitted (variables, feed, count, first, key) -> sums of moments.

  The function sums the mean and the mean square of each batch norm's input over the
  batches `first` to `first + count - 1` of `feed`. `precise_statistics` takes the sums.

  Args:
    model: a network with batch norms.
    preprocess: see `train_step`.
    take_batch: see `train_chunk`.
    sharding: sharding of the result.
    kernel_choice: "xla" or "native", from `kernels.resolve`.
  """
  # With momentum 0 and one group, the running statistics are those of the whole batch.
  model = with_norm(model, "precise_bn_batches", momentum=0.0, groups=1)
  dtype = getattr(model, "dtype", jnp.float32)

  def chunk(
    variables: Variables,
    feed: Any,
    count: Int[Array, ""],
    first: Int[Array, ""],
    key: PRNGKeyArray,
  ) -> Statistics:
    def body(i: jax.Array, sums: Statistics) -> Statistics:
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
      sums = jax.tree.map(jnp.add, sums, moments)
      return sums

    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    sums: Statistics = lax.fori_loop(first, first + count, body, zeros)
    return sums

  return compilation.jit(
    kernels.traced_with(kernel_choice, chunk),
    dtype=dtype,
    out_shardings=sharding,
  )


def precise_statistics(sums: Statistics, num_batches: int) -> Statistics:
  """Returns `batch_stats` over all batches together (Wu & Johnson 2021, section 3).

  Args:
    sums: sums from the function that `compile_statistics_chunk` returns.
    num_batches: number of batches in the sums.
  """
  means = jax.tree.map(lambda x: x / num_batches, sums)
  # If a channel hardly varies, rounding may make the difference negative.
  return _map_statistics(
    lambda mean, square: (mean, jnp.maximum(square - mean**2, 0)), means
  )


def _map_statistics(function: _ChangeMoments, tree: Statistics) -> Statistics:
  """Applies `function` to the (mean, var) of each batch norm in `batch_stats`."""
  if "mean" not in tree:
    return {name: _map_statistics(function, part) for name, part in tree.items()}
  mean, var = function(tree["mean"], tree["var"])
  return {"mean": mean, "var": var}


def create_refresh(
  model: nn.Module,
  train_data: Dataset,
  plan: Plan,
  *,
  num_batches: int,
  preprocess: Preprocess,
  key: PRNGKeyArray,
  sharding: jax.sharding.Sharding,
  kernel_choice: str = "xla",
) -> Change:
  """Returns a function that re-estimates batch-norm statistics.

  Args:
    model: the network that is trained.
    train_data: the training images; their order here differs from that of training.
    plan: the plan of training.
    num_batches: number of batches to use; 0 keeps the running statistics.
    preprocess: (images, key) -> images, as in training.
    key: PRNG key from which training draws its order.
    sharding: sharding of the statistics.
    kernel_choice: "xla" or "native", from `kernels.resolve`.
  """
  if not num_batches:
    return lambda variables: variables
  add_moments = compile_statistics_chunk(
    model=model,
    preprocess=preprocess,
    take_batch=train_data.take_batch,
    sharding=sharding,
    kernel_choice=kernel_choice,
  )
  key, plan = (
    jax.random.fold_in(key, 1),
    dataclasses.replace(plan, num_steps=num_batches),
  )

  def refresh(variables: Variables) -> Variables:
    sums = [
      add_moments(variables, feed, number, step - number, key)
      for step, feed, number in train_data.train_chunks(key, 0, plan)
    ]
    total = functools.reduce(partial(jax.tree.map, operator.add), sums)
    old, new = variables["batch_stats"], precise_statistics(total, num_batches)
    mask = frozen_mask(getattr(model, "frozen", ()), old)
    statistics = jax.tree.map(lambda x, y, m: x if m else y, old, new, mask)
    return variables | {"batch_stats": statistics}

  return refresh
