"""Trains from a config as the command does."""

from unittest import mock

from resnet_jax.runs.learning_curves import draw_curves
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.trainer import TrainResult, train


def train_config(
  config, workdir, devices=None, console=None, hooks=(), draws=False
) -> TrainResult:
  """Trains; `curves.png` is empty unless it `draws`, which takes half a second."""
  experiment = Experiment.create(config, devices=devices)
  drawing = draw_curves if draws else _leave_empty
  with mock.patch("resnet_jax.training.trainer.draw_curves", drawing):
    return train(experiment, str(workdir), console=console, hooks=hooks)


def _leave_empty(records, path, **_) -> None:
  if records:
    path.write_bytes(b"")
