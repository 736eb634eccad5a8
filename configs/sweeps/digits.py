"""Searches the learning rate, weight decay and warmup for `configs/digits.py`.

Command:
resnet-jax sweep --config=digits --space=digits --trials=30 --jobs=2
"""

from optuna.distributions import (
  BaseDistribution,
  CategoricalDistribution,
  FloatDistribution,
)


def get_space() -> dict[str, BaseDistribution]:
  return {
    "optim.learning_rate": FloatDistribution(0.005, 0.5, log=True),
    "optim.weight_decay": FloatDistribution(1e-5, 1e-2, log=True),
    "optim.warmup_epochs": CategoricalDistribution([0.0, 1.0, 2.0, 4.0]),
  }
