"""Grad-CAM: where in an image a network sees a class."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from resnet_jax.runtime.arrays import Array, Float, Float32, Int, UInt8

# Opacity of an overlay where the map is highest.
_OPACITY = 0.75
# Small images are enlarged to at least this many pixels, so that the map is smooth.
_SMALLEST_OVERLAY = 256


def grad_cam(
  maps: Float[Array, "b h w f"],
  kernel: Float32[Array, "f k"],
  classes: Int[Array, " b"],
) -> Float32[Array, "b h w"]:
  """Grad-CAM of the last stage (Selvaraju et al. 2016, arXiv 1610.02391, eq. 1 and 2).

  The weight of a feature is the mean gradient of the class's logit with respect to its
  feature map. Here only a mean and one linear layer lie between map and logit, so the
  weight is the layer's kernel entry divided by H W. No gradient has to be computed
  (section 3.1).

  Args:
    maps: feature maps of the last stage.
    kernel: kernel of the head.
    classes: the class of each image to explain.

  Returns:
    Heat maps, >= 0.
  """
  _, height, width, _ = maps.shape
  weights = kernel.T[classes] / (height * width)
  return jax.nn.relu(jnp.einsum("bhwf,bf->bhw", maps.astype(jnp.float32), weights))


def overlay(
  image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "a b"]
) -> UInt8[np.ndarray, "h2 w2 3"] | None:
  """Lays a map over an image: the higher the map, the more opaque its colour.

  Where the map is 0 the image keeps its own colours.

  Args:
    image: the network's input image.
    heat: its map from `grad_cam`, >= 0.

  Returns:
    The image with its overlay, enlarged by an integer factor if it is small. None if
    the map is constant, such as a map of one pixel or of zeros.
  """
  if heat.min() == heat.max():
    return None
  from matplotlib import colormaps  # The import takes a fraction of a second.

  height, width = image.shape[:2]
  scale = -(-_SMALLEST_OVERLAY // min(height, width))
  map_image = Image.fromarray(heat.astype(np.float32))
  size = scale * width, scale * height
  smooth = np.asarray(map_image.resize(size, Image.Resampling.BICUBIC))
  values = np.clip(smooth / heat.max(), 0, 1)
  opacity = _OPACITY * values[..., None]
  colors = 255 * colormaps["YlOrRd"](values)[..., :3]
  large = image.repeat(scale, axis=0).repeat(scale, axis=1)
  mixed: np.ndarray = (1 - opacity) * large + opacity * colors
  return mixed.round().astype(np.uint8)
