"""Residual networks in JAX and Flax: train, reproduce, build on."""

from resnet_jax import weights
from resnet_jax.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet_jax.models.dense_heads import FPN, FCNHead
from resnet_jax.models.layers import SqueezeExcite
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm
from resnet_jax.models.registry import (
  MODELS,
  ResNet18,
  ResNet34,
  ResNet50,
  ResNet101,
  ResNet152,
  create_model,
)
from resnet_jax.models.resnet import Backbone, ResNet

__all__ = [
  "FPN",
  "MODELS",
  "Backbone",
  "BasicBlock",
  "BatchNorm",
  "BottleneckBlock",
  "FCNHead",
  "FrozenBatchNorm",
  "GroupNorm",
  "PreActBasicBlock",
  "PreActBottleneckBlock",
  "ResNet",
  "ResNet18",
  "ResNet34",
  "ResNet50",
  "ResNet101",
  "ResNet152",
  "SqueezeExcite",
  "create_model",
  "weights",
]
