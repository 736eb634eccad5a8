"""Everything that training changes, as one pytree."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state
from optax import contrib

from resnet_jax.models.scan_layout import laid_out_as, to_named
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array, Int32, PRNGKeyArray

# A closed jaxpr. JAX has one class of jaxprs since 0.12; before there were two.
_Jaxpr = Any


class TrainState(train_state.TrainState):
  """Flax's `step`, `params` and `opt_state`, and three more fields.

  Attributes:
    batch_stats: running mean and variance of the batch norms, float32; empty if the
      model has none.
    key: PRNG key of augmentation, dropout and stochastic depth; step i uses
      `fold_in(key, i)`.
    ema: an average of `variables`, see `training.averages`, or None.
  """

  step: Int32[Array, ""]  # Flax also allows an int.
  batch_stats: Any
  key: PRNGKeyArray
  ema: Variables | None = None

  @property
  def variables(self) -> Variables:
    """The variables to pass to `apply_fn`."""
    return {"params": self.params, "batch_stats": self.batch_stats}

  @property
  def versions(self) -> dict[str, Variables]:
    """The variables to evaluate, by name; the last ones are the result of the run."""
    averaged = {} if self.ema is None else {"ema": self.ema}
    return {"eval": self._evaluated} | averaged

  @property
  def _evaluated(self) -> Variables:
    """The variables, with the average of a schedule-free optimiser, if it is one.

    The average is (y - (1 - beta) z) / beta, with the parameters y and the optimiser's
    z (Defazio et al. 2024, equation 3). Written as below, it is exact where y = z, such
    as in frozen groups. The batch-norm statistics are those of y; `precise_bn_batches`
    re-estimates them.
    """
    parts = jax.tree.leaves(self.opt_state, is_leaf=_is_schedule_free)
    free = next(filter(_is_schedule_free, parts), None)
    if free is None:
      return self.variables
    rest = 1 / free.b1 - 1
    average = jax.tree.map(lambda y, z: y + rest * (y - z), self.params, free.z)
    return self.variables | {"params": average}

  def to_saved(self) -> dict[str, Any]:
    """Returns the "model" and "training" parts of a checkpoint, in the named layout."""
    training = {"step": self.step, "opt_state": self.opt_state, "key": self.key}
    if self.ema is not None:
      training["ema"] = self.ema
    named: dict[str, Any] = to_named({"model": self.variables, "training": training})
    return named

  def from_saved(self, parts: Mapping[str, Any]) -> "TrainState":
    """Returns the state that `parts` of `to_saved` hold, in the layout of `self`."""
    parts = laid_out_as(parts, self.params)
    return self.replace(**parts["model"], **parts["training"])


def _is_schedule_free(part: object) -> bool:
  return isinstance(part, contrib.ScheduleFreeState)


@dataclasses.dataclass(frozen=True)
class StateInit:
  """Creates the first state of a run from a PRNG key, directly under its shardings.

  Attributes:
    model: called as `model.init(key, images)`.
    tx: the optimiser.
    image_shape: (H, W, C).
    replicated: sharding of every leaf outside the optimiser's state.
    ema: whether to keep an average.
    shard_opt_state: shapes of the optimiser's state -> their shardings; None is
      `replicated`.
  """

  model: nn.Module
  tx: optax.GradientTransformation
  image_shape: tuple[int, int, int]
  replicated: jax.sharding.Sharding
  ema: bool = False
  shard_opt_state: Callable[[Any], Any] | None = None

  def __call__(self, key: PRNGKeyArray) -> TrainState:
    """Computes the state; parameters and augmentation get different keys."""
    jaxpr, shapes = self._traced
    if jax.typeof(key) != jaxpr.in_avals[0]:  # Another kind of generator.
      jaxpr, shapes = self._trace(key)
    leaves, structure = jax.tree.flatten(shapes)
    create = compilation.jit_once(
      jax.extend.core.jaxpr_as_fun(jaxpr),
      size=sum(leaf.size for leaf in leaves),
      out_shardings=jax.tree.leaves(self.sharding()),
    )
    state: TrainState = jax.tree.unflatten(structure, create(key))
    return state

  def _create(self, key: PRNGKeyArray) -> TrainState:
    init_key, step_key = jax.random.split(key)
    variables = self.model.init(init_key, jnp.zeros((1, *self.image_shape)))
    # Flax declares no types for this method.
    state: TrainState = TrainState.create(  # type: ignore[no-untyped-call]
      apply_fn=self.model.apply,
      tx=self.tx,
      key=step_key,
      params=variables["params"],
      batch_stats=variables.get("batch_stats", {}),
    )
    # In Flax the first step is a Python int, and later ones are arrays. A step function
    # would be compiled for each.
    step = jnp.zeros((), jnp.int32)
    return state.replace(step=step, ema=state.variables if self.ema else None)

  @functools.cached_property
  def shapes(self) -> TrainState:
    """Shapes and dtypes of the state; nothing is computed."""
    return self._traced[1]

  @functools.cached_property
  def _traced(self) -> tuple[_Jaxpr, TrainState]:
    return self._trace(jax.random.key(0))

  def _trace(self, key: PRNGKeyArray) -> tuple[_Jaxpr, TrainState]:
    """Traces `_create` once, for its jaxpr and its shapes, as this takes seconds."""
    return jax.make_jaxpr(self._create, return_shape=True)(key)

  def sharding(self) -> TrainState:
    """Shardings of the state's leaves."""
    sharding: TrainState = jax.tree.map(lambda _: self.replicated, self.shapes)
    if self.shard_opt_state is None:
      return sharding
    return sharding.replace(opt_state=self.shard_opt_state(self.shapes.opt_state))
