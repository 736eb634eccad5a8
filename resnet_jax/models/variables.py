"""The variables of a network: parameters and batch-norm statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.models.scan_layout import to_named

# What `model.apply` takes: {"params": ..., "batch_stats": ...}.
Variables = dict[str, Any]
Change = Callable[[Variables], Variables]


def abstract_variables(
  model: nn.Module, image_shape: tuple[int, int, int], sharding: jax.sharding.Sharding
) -> Variables:
  """Returns the shapes and dtypes of a network's variables, in the named layout.

  It computes no values.

  Args:
    model: called as `model.init(key, images)`.
    image_shape: (H, W, C).
    sharding: sharding of every leaf.
  """
  if hasattr(model, "scan"):
    model = model.clone(scan=True)  # The quickest to trace.

  def init(images: jax.Array) -> Variables:
    named: Variables = to_named(model.init(jax.random.key(0), images))
    return {"batch_stats": {}} | named

  shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  abstract: Variables = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
  )
  return abstract


def image_channels(variables: Variables) -> int:
  """Returns the number of image channels that the variables of a `ResNet` need."""
  stem = jax.tree.leaves(variables["params"]["stem"])
  return next(int(x.shape[2]) for x in stem if x.ndim == 4)
