"""Trains from a config as the command does."""

from resnet_jax.training.experiment import Experiment
from resnet_jax.training.trainer import TrainResult, train


def train_config(config, workdir, devices=None, console=None, hooks=()) -> TrainResult:
  experiment = Experiment.create(config, devices=devices)
  return train(experiment, str(workdir), console=console, hooks=hooks)
