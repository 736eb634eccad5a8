"""Learning-rate schedules and optimisers, built from optax."""

import math
import operator
from collections.abc import Collection
from functools import partial

import jax
import optax
from jax.tree_util import DictKey
from optax import contrib

from resnet_jax.config.factories import call_factory
from resnet_jax.config.plan import Plan
from resnet_jax.config.schema import OptimConfig
from resnet_jax.models.groups import distances_from_head, frozen_mask
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.muon import muon_or_adam

# Of "poly", as in DeepLab (Chen et al. 2016, arXiv 1606.00915, section 4.1).
_POLY_POWER = 0.9


def create_schedule(config: OptimConfig, plan: Plan, batch_size: int) -> optax.Schedule:
  """Returns a schedule: warmup, then step decay, a decrease to 0 or a constant rate.

  The rate is constant for a plateau: `create_optimizer` multiplies it by a scale that
  the optimiser's state contains.

  Args:
    config: kind and shape of the schedule.
    plan: lengths and boundaries of the schedule, in steps.
    batch_size: scales the learning rate if `reference_batch_size` is given.

  Returns:
    step -> learning rate of the update after `step` completed updates. A boundary step
    already has the lower rate.
  """
  scale = batch_scale(config, batch_size)
  learning_rate = config.learning_rate * scale
  start = config.warmup_learning_rate * scale
  if config.warmup == "constant":
    warmup = optax.constant_schedule(start)
  elif config.warmup == "head":
    warmup = optax.constant_schedule(learning_rate)
  else:
    warmup = optax.linear_schedule(start, learning_rate, plan.warmup_steps)
  # A run may be shorter than its warmup; it then never uses the main schedule.
  length = max(1, plan.num_steps - plan.warmup_steps)
  if config.schedule == "cosine":
    main = optax.cosine_decay_schedule(learning_rate, length)
  elif config.schedule == "poly":
    main = optax.polynomial_schedule(learning_rate, 0, _POLY_POWER, length)
  else:
    # `join_schedules` counts the second schedule's steps from the end of warmup.
    boundaries = [step - plan.warmup_steps for step in plan.decay_steps]
    factors = dict.fromkeys(boundaries, config.decay_factor)
    main = optax.piecewise_constant_schedule(learning_rate, factors)
  if plan.warmup_steps == 0:
    return main
  return optax.join_schedules([warmup, main], [plan.warmup_steps])


def batch_scale(config: OptimConfig, batch_size: int) -> float:
  """Returns the factor of all learning rates for a batch size."""
  scale = batch_size / (config.reference_batch_size or batch_size)
  return math.sqrt(scale) if config.batch_scaling == "sqrt" else scale


# Key of the plateau's factor of the learning rate in an optimiser's state.
PLATEAU_SCALE = "plateau_scale"


def kernels_only(params: optax.Params) -> optax.Params:
  """Returns a tree of bools: True for kernels, False for batch norm and biases."""

  def is_kernel(path: tuple[DictKey, ...], _: object) -> bool:
    name: str = path[-1].key
    return name == "kernel"

  return jax.tree_util.tree_map_with_path(is_kernel, params)


def create_optimizer(
  config: OptimConfig,
  schedule: optax.Schedule | None,
  frozen: Collection[str] = (),
  own: optax.GradientTransformation | None = None,
  warmup_steps: int = 0,
) -> optax.GradientTransformation:
  """Chains gradient clipping, weight decay and the optimiser, in that order.

  Args:
    config: names the optimiser and its settings.
    schedule: the learning-rate schedule; None if `own` is given.
    frozen: names of `frozen_mask`; the parameters must not change, not even in one
      bit.
    own: an optimiser in place of the one that `config` names.
    warmup_steps: length of warmup.

  Raises:
    UserError: `config` trains only the head during warmup, but the parameters have no
      group "head"; or `config` has a layer decay, and the order of the groups is not
      known. The result's `init` raises it. Or `config` has a plateau and `own` is
      given, which has its own learning rate.
  """
  if own is not None:
    if config.has_plateau:
      raise UserError(
        "config.optim.schedule='plateau' cannot change the learning rate of an "
        "optimiser that is given as an object; name config.optim.factory, a function "
        "that takes the schedule"
      )
    tx = own
  else:
    assert schedule is not None
    create = _with_plateau if config.has_plateau else _create
    tx = create(config, schedule)
  freeze = (
    [optax.masked(optax.set_to_zero(), partial(frozen_mask, frozen))] if frozen else []
  )
  if config.warmup == "head":
    is_over = optax.scale_by_schedule(lambda step: step >= warmup_steps)
    freeze.append(optax.masked(is_over, _outside_head))
  scales = [
    optax.masked(optax.scale(factor), partial(_within, {group}))
    for group, factor in config.learning_rate_multipliers.items()
  ]
  if config.layer_decay < 1:
    scales.append(_scale_by_depth(config.layer_decay))
  # Freezing before the optimiser keeps frozen groups out of gradient norms; freezing
  # after it undoes their weight decay.
  rows = [*freeze, tx, *scales, *freeze]
  if schedule is not None and config.is_schedule_free:
    # The multipliers and the freezing must also hold for its second sequence.
    free = contrib.schedule_free(optax.chain(*rows), schedule, b1=config.momentum)
    rows = [free, *freeze]
  return optax.chain(*rows) if len(rows) > 1 else rows[0]


def _with_plateau(
  config: OptimConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns the optimiser with a factor of its learning rate in its state, first 1.

  To multiply the updates instead would differ where momentum comes after the rate, as
  in LARS.
  """

  def create(plateau_scale: jax.Array) -> optax.GradientTransformation:
    return _create(config, lambda step: plateau_scale * schedule(step))

  return optax.inject_hyperparams(create)(**{PLATEAU_SCALE: 1.0})


def _create(
  config: OptimConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns the user's optimiser, or the one that `config` names."""
  if not config.factory:
    return _create_optimizer(config, schedule)
  kind = optax.GradientTransformation
  made: optax.GradientTransformation = call_factory(
    config.factory, "optim.factory", schedule, returns=(kind,)
  )
  return made


def _within(groups: Collection[str], params: optax.Params) -> optax.Params:
  """Returns a tree of bools: whether a parameter is in one of the groups."""

  def is_within(path: tuple[DictKey, ...], _: object) -> bool:
    return path[0].key in groups

  return jax.tree_util.tree_map_with_path(is_within, params)


def _scale_by_depth(decay: float) -> optax.GradientTransformation:
  """Scales the update of each group by decay**(distance from the head)."""

  def init(params: optax.Params) -> optax.OptState:
    distances_from_head(tuple(params))  # Refuses other groups.
    return optax.EmptyState()

  def update(
    updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    del params
    distances = distances_from_head(tuple(updates))
    scaled = {
      group: jax.tree.map(partial(operator.mul, decay ** distances[group]), part)
      for group, part in updates.items()
    }
    return scaled, state

  return optax.GradientTransformation(init, update)


def _outside_head(params: optax.Params) -> optax.Params:
  """Returns a tree of bools: whether a parameter is outside the group "head"."""
  if "head" not in params:
    raise UserError(
      "config.optim.warmup='head' needs a network with a part called 'head', not only "
      f"{', '.join(params)}"
    )
  return jax.tree.map(operator.not_, _within({"head"}, params))


def _create_optimizer(
  config: OptimConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns the optimiser that `config` names, identical for all groups.

  SGD is PyTorch's: v = momentum v + (g + weight_decay w); w = w - learning_rate v.
  LARS scales the update of each kernel, including weight decay, by 0.001 times the norm
  of the kernel divided by the norm of the update. LAMB scales Adam's update of each
  leaf by the norm of the leaf divided by the norm of the update.

  `schedule_free_sgd` is SGD without momentum here; `create_optimizer` does the rest.
  """
  mask = None if config.decay_all else kernels_only
  clip = optax.identity()
  if config.clip_norm:
    clip = optax.clip_by_global_norm(config.clip_norm)
  if config.name == "adamw":
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay, mask=mask)
    return optax.chain(clip, adamw)
  if config.name == "lamb":
    lamb = optax.lamb(schedule, weight_decay=config.weight_decay, mask=mask)
    return optax.chain(clip, lamb)
  if config.name == "muon":
    return optax.chain(
      clip,
      muon_or_adam(config.momentum, config.nesterov),
      optax.add_decayed_weights(config.weight_decay, mask),
      optax.scale_by_learning_rate(schedule),
    )
  if config.name == "lars":
    lars = optax.lars(
      schedule,
      config.weight_decay,
      weight_decay_mask=mask or True,
      trust_ratio_mask=kernels_only,
      momentum=config.momentum,
      nesterov=config.nesterov,
    )
    return optax.chain(clip, lars)
  decay = optax.add_decayed_weights(config.weight_decay, mask)
  if config.name == "adam":
    optimizer = optax.adam(schedule)
  elif config.is_schedule_free:
    optimizer = optax.sgd(schedule)
  else:
    optimizer = optax.sgd(schedule, config.momentum or None, config.nesterov)
  return optax.chain(clip, decay, optimizer)
