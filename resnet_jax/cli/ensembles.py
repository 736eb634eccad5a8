"""The networks of an ensemble: runs and weights that a command evaluates together."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.evaluation.answers import Outputs
  from resnet_jax.evaluation.corruptions import Corrupt
  from resnet_jax.evaluation.views import Views
  from resnet_jax.training.evaluator import Prepared


def name_member(args: argparse.Namespace, name: str) -> None:
  """Makes a run or weights the network to evaluate."""
  from resnet_jax import weights

  weights.check_exists(name, "--ensemble ")
  is_run = weights.is_run(name)
  args.workdir, args.weights = (name, None) if is_run else (None, name)
  args.model = args.num_classes = args.ema = None


def member(
  args: argparse.Namespace, prepared: "Prepared", views: "Views"
) -> "Callable[[Corrupt | None], Outputs]":
  """Returns a function that gives the answers of a network, calibrated if asked."""
  from resnet_jax.evaluation.answers import collector
  from resnet_jax.inference.calibration import read_calibration

  run = collector(prepared, views, args.engine)
  if not args.calibrated:
    return run
  kind = prepared.experiment.config.data.labels
  path = args.weights if prepared.step is None else args.workdir
  calibration = read_calibration(path, prepared.step, kind)

  def answer(corrupt: "Corrupt | None") -> "Outputs":
    return run(corrupt).calibrated(**calibration)

  return answer
