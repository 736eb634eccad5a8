"""Residual networks in JAX and Flax: train, reproduce, build on.

Networks need jax, flax and numpy only. Whatever needs more is imported when it is first
used: `train`, `evaluate`, `Experiment`, `Classifier`, `load`, `weights`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from resnet_jax.config import Config
from resnet_jax.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet_jax.models.dense_heads import FPN, FCNHead
from resnet_jax.models.layers import Conv, SqueezeExcite
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
from resnet_jax.models.shortcuts import (
  HighwayShortcut,
  IdentityShortcut,
  NoShortcut,
  ProjectionShortcut,
)
from resnet_jax.models.stems import CifarStem, DeepStem, ImageNetStem

if TYPE_CHECKING:
  from resnet_jax import weights
  from resnet_jax.inference.classifier import Classifier, load
  from resnet_jax.training.evaluator import evaluate
  from resnet_jax.training.experiment import Experiment
  from resnet_jax.training.hooks import Hook
  from resnet_jax.training.tasks import Classification, Task
  from resnet_jax.training.trainer import TrainResult, train

__version__ = "0.1.0"

# Where the names are that need more than a network does.
_LATER = {
  "Classification": "resnet_jax.training.tasks",
  "Classifier": "resnet_jax.inference.classifier",
  "Experiment": "resnet_jax.training.experiment",
  "Hook": "resnet_jax.training.hooks",
  "Task": "resnet_jax.training.tasks",
  "TrainResult": "resnet_jax.training.trainer",
  "evaluate": "resnet_jax.training.evaluator",
  "load": "resnet_jax.inference.classifier",
  "train": "resnet_jax.training.trainer",
}

__all__ = [
  "FPN",
  "MODELS",
  "Backbone",
  "BasicBlock",
  "BatchNorm",
  "BottleneckBlock",
  "CifarStem",
  "Classification",
  "Classifier",
  "Config",
  "Conv",
  "DeepStem",
  "Experiment",
  "FCNHead",
  "FrozenBatchNorm",
  "GroupNorm",
  "HighwayShortcut",
  "Hook",
  "IdentityShortcut",
  "ImageNetStem",
  "NoShortcut",
  "PreActBasicBlock",
  "PreActBottleneckBlock",
  "ProjectionShortcut",
  "ResNet",
  "ResNet18",
  "ResNet34",
  "ResNet50",
  "ResNet101",
  "ResNet152",
  "SqueezeExcite",
  "Task",
  "TrainResult",
  "create_model",
  "evaluate",
  "load",
  "train",
  "weights",
]


def __getattr__(name: str) -> Any:
  if name == "weights":
    return importlib.import_module("resnet_jax.weights")
  if name in _LATER:
    return getattr(importlib.import_module(_LATER[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
