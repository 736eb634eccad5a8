"""Trains from a config as the command does."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

from resnet_jax.runs.learning_curves import draw_curves
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.hooks import Hook
from resnet_jax.training.trainer import TrainResult, train

TESTS = Path(__file__).parent


class Kill(Hook):
  """Kills the process when step 6 is logged."""

  def on_log(self, step, values):
    if step == 6:
      os.kill(os.getpid(), signal.SIGKILL)


def run_killed(module, function, *arguments) -> None:
  """Calls a function of a test file, with [Kill()] as its last argument, in a process.

  The process has the settings of the tests, such as the number of devices.

  Args:
    module: name of the test file.
    function: name of the function.
    *arguments: its other arguments.
  """
  script = (
    f"import sys; sys.path.insert(0, {str(TESTS)!r}); import conftest, {module}, "
    f"running; {module}.{function}(*{arguments!r}, [running.Kill()])"
  )
  process = subprocess.run([sys.executable, "-c", script], cwd=TESTS.parent)
  assert process.returncode == -signal.SIGKILL


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
