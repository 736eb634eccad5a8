"""Parts that a user writes; settings name them by their import path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from resnet_jax import Classification, ResNet, Segmenter
from resnet_jax.data import ImageArrays
from resnet_jax.models.layers import ModuleDef
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.stems import CifarStem


class TinyNet(nn.Module):
  """Maps images to logits; has no blocks, stem or norm."""

  num_classes: int

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    del train
    x = nn.relu(nn.Conv(8, (3, 3), name="first")(images))
    return nn.Dense(self.num_classes, name="last")(x.mean((1, 2))).astype(jnp.float32)


def network(config) -> nn.Module:
  return TinyNet(config.num_classes)


class NormedNet(nn.Module):
  """Maps images to logits; has batch-norm statistics and compiles quickly."""

  num_classes: int
  norm_cls: ModuleDef = BatchNorm

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = nn.Conv(4, (3, 3), use_bias=False, name="conv")(images)
    x = nn.relu(self.norm_cls(use_running_average=not train, name="bn")(x))
    return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


def normed_network(config) -> nn.Module:
  return NormedNet(config.num_classes)


@dataclasses.dataclass(frozen=True)
class Margin(Classification):
  """Has another loss, and a metric of its own that chooses the best checkpoint."""

  best_metric: str = "confidence"

  def loss(self, logits, targets, train):
    return optax.hinge_loss(logits, 2 * targets - 1).mean(-1)

  def metrics(self, logits, labels):
    confidence = jax.nn.softmax(logits).max(-1)
    return super().metrics(logits, labels) | {"confidence": confidence}


def task(config) -> Margin:
  return Margin(config.model.num_classes)


def optimizer(schedule) -> optax.GradientTransformation:
  return optax.sgd(schedule, 0.5)


def data(config, split: str) -> ImageArrays:
  del config
  rng = np.random.default_rng(len(split))
  labels = rng.integers(0, 2, 40).astype(np.int32)
  images = np.full((40, 8, 8, 3), 60, np.uint8) + (labels * 90)[:, None, None, None]
  return ImageArrays(images.astype(np.uint8), labels, ("dark", "light"))


def brighter(config):
  del config
  return lambda key, images: jnp.minimum(images, 254) + 1


# Parts of the wrong kind for their settings.
CONSTANT = 3


def task_of_two(config) -> Margin:
  del config
  return Margin(2)


class Misnamed(Classification):
  """Has a metric with a name that training uses itself."""

  def metrics(self, logits, labels):
    return {"count": logits.argmax(-1) == labels}


def misnamed(config) -> Misnamed:
  return Misnamed(config.model.num_classes)


def pair(config, split: str) -> tuple[str, str]:
  return config.name, split


class TwoOutputs(TinyNet):
  """Returns its logits twice."""

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> list[jax.Array]:
    x = nn.Dense(self.num_classes, name="last")(images.mean((1, 2)))
    return [x, x]


def two_outputs(config) -> nn.Module:
  return TwoOutputs(config.num_classes)


def segmenter(config) -> Segmenter:
  """A segmenter that compiles quickly."""
  net = ResNet(stage_sizes=(1, 1), features=4, stem_cls=CifarStem)
  return Segmenter(net, config.num_classes, output_stride=None)
