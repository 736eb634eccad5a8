"""Where in an image a network sees a class."""

import jax
import jax.numpy as jnp


def grad_cam(maps: jax.Array, kernel: jax.Array, classes: jax.Array) -> jax.Array:
  """Grad-CAM of the last maps (Selvaraju et al. 2016, arXiv 1610.02391, eq. 1 and 2).

  The weight of a feature is the mean gradient of the class's logit by its map. Between
  map and logit are only a mean and one linear layer here, so that it is the layer's
  own number over H W; no gradient has to be computed (section 3.1).

  Args:
    maps: [B, H, W, F], of the last stage.
    kernel: [F, K], of the head.
    classes: [B], of which logit.

  Returns:
    [B, H, W] float32, >= 0.
  """
  _, height, width, _ = maps.shape
  weights = kernel.T[classes] / (height * width)
  return jax.nn.relu(jnp.einsum("bhwf,bf->bhw", maps.astype(jnp.float32), weights))
