"""Averages of the parameters and batch-norm statistics over a run: `state.ema`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from resnet_jax.config.plan import Plan
from resnet_jax.config.schema import OptimConfig
from resnet_jax.models.variables import Variables
from resnet_jax.runtime.arrays import Array, Int

Step = int | Int[Array, ""]
# (average, variables, completed updates) -> average with these variables.
Average = Callable[[Variables, Variables, Step], Variables]


def create_average(config: OptimConfig, plan: Plan) -> Average | None:
  """Returns the average that the settings describe, or None."""
  if plan.swa_start:
    return Mean(plan.swa_start, plan.steps_per_epoch)
  return Ema(config.ema_decay) if config.ema_decay else None


@dataclasses.dataclass(frozen=True)
class Ema:
  """Exponential moving average.

  Attributes:
    decay: share of the average that an update keeps. As in TensorFlow, it is lower in
      early steps, to forget the first values.
  """

  decay: float

  def __call__(self, average: Variables, variables: Variables, step: Step) -> Variables:
    decay = jnp.minimum(self.decay, (1 + step) / (10 + step))
    return _move(average, variables, 1 - decay)


@dataclasses.dataclass(frozen=True)
class Mean:
  """Stochastic weight averaging: the mean of one state per epoch, from a step on.

  This is algorithm 1 of Izmailov et al. 2018 (arXiv:1803.05407), whose cycle is one
  epoch for a constant learning rate. One state per epoch also keeps the mean exact: in
  float32, the increments of a mean over 100,000 steps would be lost. Until the first
  step, the average is the variables themselves.

  Attributes:
    start: number of updates before the first state.
    period: updates between two states.
  """

  start: int
  period: int

  def __call__(self, average: Variables, variables: Variables, step: Step) -> Variables:
    passed = jnp.maximum(step - self.start, 0)
    is_counted = passed % self.period == 0
    return _move(average, variables, is_counted / (passed // self.period + 1))


def _move(average: Variables, variables: Variables, share: jax.Array) -> Variables:
  """Moves an average towards variables; a share of 1 makes them equal to the bit."""

  # `optax.incremental_update` would change even constant values, by rounding.
  def move(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(share == 1, new, old + share * (new - old))

  moved: Variables = jax.tree.map(move, average, variables)
  return moved
