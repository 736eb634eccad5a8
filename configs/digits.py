"""ResNet-8 on scikit-learn's handwritten digits: the default, for a first look.

Command: python train.py

26 s on 2 CPU cores, start-up and compilation included; 99.7 % test top-1 (2026-11-21,
jax 0.10.2, seed 0). The training loss is of smoothed labels, the evaluation's is not.
"""

from resnet_jax.config import (
  AugmentConfig,
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
)


def get_config() -> Config:
  return Config(
    num_epochs=24,
    batch_size=64,
    steps_per_call=11,
    log_every_steps=22,
    eval_every_steps=88,
    model=ModelConfig(name="resnet8"),
    data=DataConfig(name="digits"),
    augment=AugmentConfig(padding=1),
    optim=OptimConfig(
      learning_rate=0.1,
      nesterov=True,
      weight_decay=5e-4,
      warmup_epochs=2,
      decay_epochs=(14, 20),
      label_smoothing=0.1,
    ),
  )
