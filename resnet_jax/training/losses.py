"""Losses: (outputs of the network, targets) -> loss of each example.

Letters: B batch, K outputs. The targets of classes are probabilities, those of numbers
are standardised; mixup may have averaged both.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from resnet_jax.config.loss_settings import LOSSES, LossConfig
from resnet_jax.runtime.arrays import Array, Float32

_TINY = 1e-30  # A power below 1 has no gradient at 0.
Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax(
  logits: Float32[Array, "b k"], targets: Float32[Array, "b k"]
) -> Float32[Array, " b"]:
  """Returns the cross-entropy of the softmax, in nats."""
  losses: Array = optax.softmax_cross_entropy(logits, targets)
  return losses


def focal(
  logits: Float32[Array, "b k"], targets: Float32[Array, "b k"], gamma: float
) -> Float32[Array, " b"]:
  """Returns the focal loss, (1 - p)^gamma times the cross-entropy (Lin et al. 2017).

  Args:
    logits: of the softmax.
    targets: probabilities.
    gamma: how much less images count that are classified well.
  """
  logs = jax.nn.log_softmax(logits)
  # `expm1` keeps small numbers exact, and their power has a gradient.
  others = jnp.maximum(-jnp.expm1(logs), _TINY)
  losses: Array = -(targets * others**gamma * logs).sum(axis=-1)
  return losses


def binary(
  logits: Float32[Array, "b k"], targets: Float32[Array, "b k"], threshold: float
) -> Float32[Array, " b"]:
  """Returns the binary cross-entropy, the mean of the classes (Wightman et al. 2021).

  Args:
    logits: of a sigmoid for each class.
    targets: probabilities.
    threshold: larger targets become 1, others 0; 0 leaves them.
  """
  if threshold:
    targets = (targets > threshold).astype(jnp.float32)
  losses: Array = optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)
  return losses


def several_binary(
  logits: Float32[Array, "b k"],
  targets: Float32[Array, "b k"],
  gamma: float = 0.0,
  weights: tuple[float, ...] = (),
) -> Float32[Array, " b"]:
  """Returns the binary cross-entropy of any number of classes, the mean of all.

  Args:
    logits: of a sigmoid for each class.
    targets: probability that the image has the class.
    gamma: exponent of the focal loss (Lin et al. 2017, equation 4); 0 is none.
    weights: factors for each class of the part where the image has it, as PyTorch's
      `pos_weight`; () is 1.
  """
  scale = jnp.array(weights or (1.0,))[None]
  has, lacks = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  own, others = -targets * scale * has, -(1 - targets) * lacks
  if gamma:
    own, others = own * jnp.exp(gamma * lacks), others * jnp.exp(gamma * has)
  losses: Array = (own + others).mean(axis=-1)
  return losses


def regression(
  outputs: Float32[Array, "b k"],
  targets: Float32[Array, "b k"],
  error: Loss = optax.squared_error,
) -> Float32[Array, " b"]:
  """Returns the mean error over the numbers of a label.

  Args:
    outputs: of the network.
    targets: standardised numbers.
    error: error of each number.
  """
  losses: Array = error(outputs, targets).mean(axis=-1)
  return losses


def _absolute(outputs: Array, targets: Array) -> Array:
  return jnp.abs(outputs - targets)


def create_loss(config: LossConfig, labels: str) -> Loss:
  """Returns the loss that the settings name, for a value of `DataConfig.labels`."""
  gamma, weights = config.focal_gamma, config.class_weights
  losses: dict[str, dict[str, Loss]] = {
    "class": {
      "softmax": softmax,
      "focal": partial(focal, gamma=gamma),
      "bce": partial(binary, threshold=config.bce_threshold),
    },
    "classes": {
      "bce": partial(several_binary, weights=weights),
      "focal": partial(several_binary, gamma=gamma, weights=weights),
    },
    "numbers": {
      "mse": regression,
      "mae": partial(regression, error=_absolute),
      # Huber 1964: squared below an error of 1, else absolute.
      "huber": partial(regression, error=optax.huber_loss),
    },
  }
  return losses[labels][config.name or LOSSES[labels][0]]
