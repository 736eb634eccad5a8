"""Losses of a classification: (logits, targets) -> loss of each example.

Letters: B batch, K classes. Targets are probabilities, which mixup may have averaged.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from resnet_jax.config.schema import LossConfig
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


def create_loss(config: LossConfig) -> Loss:
  """Returns the loss that the settings name."""
  losses: dict[str, Loss] = {
    "softmax": softmax,
    "focal": partial(focal, gamma=config.focal_gamma),
    "bce": partial(binary, threshold=config.bce_threshold),
  }
  return losses[config.name]
