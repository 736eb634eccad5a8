"""Random arrays by NumPy: JAX would compile for seconds for each shape."""

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
