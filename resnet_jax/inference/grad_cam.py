"""Where in an image a network sees a class."""

import jax
import jax.numpy as jnp

from resnet_jax.runtime.arrays import Array, Float, Float32, Int


def grad_cam(
  maps: Float[Array, "b h w f"],
  kernel: Float32[Array, "f k"],
  classes: Int[Array, " b"],
) -> Float32[Array, "b h w"]:
  """Grad-CAM of the last maps (Selvaraju et al. 2016, arXiv 1610.02391, eq. 1 and 2).

  The weight of a feature is the mean gradient of the class's logit by its map. Between
  map and logit are only a mean and one linear layer here, so that it is the layer's
  own number over H W; no gradient has to be computed (section 3.1).

  Args:
    maps: of the last stage.
    kernel: of the head.
    classes: of which logit.

  Returns:
    >= 0.
  """
  _, height, width, _ = maps.shape
  weights = kernel.T[classes] / (height * width)
  return jax.nn.relu(jnp.einsum("bhwf,bf->bhw", maps.astype(jnp.float32), weights))
