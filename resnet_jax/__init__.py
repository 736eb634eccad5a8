"""Residual networks in JAX and Flax: train, reproduce, build on."""

from resnet_jax.models.blocks import BasicBlock, BottleneckBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.zoo import (
  MODELS,
  ResNet18,
  ResNet34,
  ResNet50,
  ResNet101,
  ResNet152,
  create_model,
)

__all__ = [
  "MODELS",
  "BasicBlock",
  "BottleneckBlock",
  "ResNet",
  "ResNet18",
  "ResNet34",
  "ResNet50",
  "ResNet101",
  "ResNet152",
  "create_model",
]
