"""Settings as typed dataclasses, checked once.

Imports:
  from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig
"""

from resnet_jax.config.fields import set_value
from resnet_jax.config.schema import (
  AugmentConfig,
  CheckpointConfig,
  Config,
  DataConfig,
  DistillConfig,
  LossConfig,
  ModelConfig,
  OptimConfig,
)

__all__ = [
  "AugmentConfig",
  "CheckpointConfig",
  "Config",
  "DataConfig",
  "DistillConfig",
  "LossConfig",
  "ModelConfig",
  "OptimConfig",
  "set_value",
]
