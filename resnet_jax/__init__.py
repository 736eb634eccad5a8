"""Residual networks in JAX and Flax: train, reproduce, build on.

Every name is imported when it is first used. Networks need jax, flax and numpy only;
`train`, `evaluate`, `Experiment`, `Classifier`, `load` and `weights` need more.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from resnet_jax import weights
  from resnet_jax.config import Config
  from resnet_jax.inference.classifier import Classifier
  from resnet_jax.inference.loading import load
  from resnet_jax.models.anchors import Detections, detect
  from resnet_jax.models.architectures import MODELS
  from resnet_jax.models.backbone import Backbone
  from resnet_jax.models.blocks import (
    BasicBlock,
    BottleneckBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
  )
  from resnet_jax.models.dense_heads import FPN, DeepLabV3Head, FCNHead, StridedLevels
  from resnet_jax.models.detection import DETECTORS, RetinaNet, create_detector
  from resnet_jax.models.layers import (
    Conv,
    EfficientChannelAttention,
    SqueezeExcite,
    StandardizedConv,
  )
  from resnet_jax.models.norms import (
    BatchNorm,
    EvoNormS0,
    FilterResponseNorm,
    FrozenBatchNorm,
    GroupNorm,
  )
  from resnet_jax.models.registry import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    create_model,
  )
  from resnet_jax.models.resnet import ResNet
  from resnet_jax.models.segmentation import SEGMENTERS, Segmenter, create_segmenter
  from resnet_jax.models.shortcuts import (
    HighwayShortcut,
    IdentityShortcut,
    NoShortcut,
    ProjectionShortcut,
  )
  from resnet_jax.models.stems import CifarStem, DeepStem, ImageNetStem, TieredStem
  from resnet_jax.training.evaluator import evaluate
  from resnet_jax.training.experiment import Experiment
  from resnet_jax.training.hooks import Hook
  from resnet_jax.training.tasks import Classification, Task
  from resnet_jax.training.trainer import TrainResult, train

__version__ = "0.1.0"

# The names that each file defines.
_FILES = {
  "config": "Config",
  "inference.classifier": "Classifier",
  "inference.loading": "load",
  "models.blocks": "BasicBlock BottleneckBlock PreActBasicBlock PreActBottleneckBlock",
  "models.anchors": "Detections detect",
  "models.dense_heads": "FPN DeepLabV3Head FCNHead StridedLevels",
  "models.detection": "DETECTORS RetinaNet create_detector",
  "models.layers": "Conv EfficientChannelAttention SqueezeExcite StandardizedConv",
  "models.norms": "BatchNorm EvoNormS0 FilterResponseNorm FrozenBatchNorm GroupNorm",
  "models.architectures": "MODELS",
  "models.registry": "create_model ResNet18 ResNet34 ResNet50 ResNet101 ResNet152",
  "models.backbone": "Backbone",
  "models.resnet": "ResNet",
  "models.segmentation": "SEGMENTERS Segmenter create_segmenter",
  "models.shortcuts": "HighwayShortcut IdentityShortcut NoShortcut ProjectionShortcut",
  "models.stems": "CifarStem DeepStem ImageNetStem TieredStem",
  "training.evaluator": "evaluate",
  "training.experiment": "Experiment",
  "training.hooks": "Hook",
  "training.tasks": "Classification Task",
  "training.trainer": "TrainResult train",
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names.split()}

__all__ = [
  "DETECTORS",
  "FPN",
  "MODELS",
  "SEGMENTERS",
  "Backbone",
  "BasicBlock",
  "BatchNorm",
  "BottleneckBlock",
  "CifarStem",
  "Classification",
  "Classifier",
  "Config",
  "Conv",
  "DeepLabV3Head",
  "DeepStem",
  "Detections",
  "EfficientChannelAttention",
  "EvoNormS0",
  "Experiment",
  "FCNHead",
  "FilterResponseNorm",
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
  "RetinaNet",
  "Segmenter",
  "SqueezeExcite",
  "StandardizedConv",
  "StridedLevels",
  "Task",
  "TieredStem",
  "TrainResult",
  "create_detector",
  "create_model",
  "create_segmenter",
  "detect",
  "evaluate",
  "load",
  "train",
  "weights",
]


def __getattr__(name: str) -> Any:
  if name == "weights":
    return importlib.import_module("resnet_jax.weights")
  if name in _FILE_OF:
    return getattr(importlib.import_module(f"resnet_jax.{_FILE_OF[name]}"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
