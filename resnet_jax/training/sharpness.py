"""Sharpness-aware minimisation (SAM): the loss is low all around the parameters.

SAM updates the parameters w with the gradient at w + rho g / ||g||, where g is the
gradient at w (Foret et al. 2020, arXiv:2010.01412, equations 2 and 4). Its cost is a
second gradient. g is the gradient of the whole batch, over all devices.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.config.schema import Config
from resnet_jax.models.groups import frozen_mask

# (parameters, gradients) -> parameters at which the update's gradient is computed.
Perturb = Callable[[Any, Any], dict[str, Any]]


def create_perturbation(config: Config) -> Perturb | None:
  """Returns the perturbation of `config.optim.sam_rho`, or None if it is 0."""
  rho = config.optim.sam_rho
  return partial(climb, rho=rho, frozen=config.freeze) if rho else None


def climb(
  params: dict[str, Any],
  gradients: dict[str, Any],
  *,
  rho: float,
  frozen: Collection[str] = (),
) -> dict[str, Any]:
  """Moves parameters by the distance `rho` along their gradients.

  Args:
    params: parameters by group.
    gradients: like `params`.
    rho: L2 norm of the movement, over all groups together.
    frozen: names of `frozen_mask`: parameters that do not move. Their gradients do not
      count for the norm.
  """
  if frozen:
    is_frozen = frozen_mask(frozen, gradients)
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    gradients = jax.tree.map(jnp.where, is_frozen, zeros, gradients)
  # Where the gradient is 0, the loss has no direction of ascent.
  norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradients)))
  scale = rho / jnp.maximum(norm, 1e-12)
  moved: dict[str, Any] = jax.tree.map(lambda w, g: w + scale * g, params, gradients)
  return moved
