"""The variables of a network: parameters and batch-norm statistics."""

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.scan_layout import to_named

# What `model.apply` takes: {"params": ..., "batch_stats": ...}.
Variables = dict[str, Any]


def abstract_variables(
  model: ResNet, image_shape: tuple[int, int, int], sharding: jax.sharding.Sharding
) -> Variables:
  """Shapes and dtypes of what `model.apply` takes, in the named layout.

  Nothing is computed.

  Args:
    model: called as `model.init(key, images)`.
    image_shape: (H, W, C).
    sharding: of every leaf.
  """
  model = model.clone(scan=True)  # The quickest to trace.

  def init(images: jax.Array) -> Variables:
    return {"batch_stats": {}} | to_named(model.init(jax.random.key(0), images))

  shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
  )


def image_channels(variables: Variables) -> int:
  """Returns C of the images that a model's variables are for."""
  kernels = [x for x in jax.tree.leaves(variables["params"]["stem"]) if x.ndim == 4]
  return kernels[0].shape[2]
