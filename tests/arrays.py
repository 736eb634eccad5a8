"""Random arrays made by NumPy: JAX would compile for seconds for each shape."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0) -> jax.Array:
  """Returns standard normal float32."""
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pixels(*shape: int, low: int = 0, seed: int = 0) -> jax.Array:
  """Returns uint8 in [low, 255]."""
  numbers = np.random.default_rng(seed).integers(low, 256, shape)
  return jnp.asarray(numbers, jnp.uint8)


def variables_of(module, *arguments, spread: float = 0.0):
  """Returns random variables of a module, as good as those of `init` but faster.

  Args:
    module: a Flax module.
    *arguments: arguments of its call.
    spread: half the width of the uniform noise on all arrays but the kernels.
  """
  numbers = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name == "kernel":
      fan_in = leaf.size / leaf.shape[-1]
      array = numbers.normal(0, np.sqrt(2 / fan_in), leaf.shape)
    else:
      array = float(name in ("scale", "var"))
      array += numbers.uniform(-spread, spread, leaf.shape)
    return jnp.asarray(array, leaf.dtype)

  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))
  return jax.tree_util.tree_map_with_path(draw, shapes)
