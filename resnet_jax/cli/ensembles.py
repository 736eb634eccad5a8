"""The networks of an ensemble: runs and weights that a command evaluates together."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.evaluation.answers import Answers
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
) -> "Callable[[Corrupt | None], Answers]":
  """Returns a function that gives the answers of a network, calibrated if asked."""
  from resnet_jax import weights
  from resnet_jax.evaluation.answers import collector
  from resnet_jax.runs.temperature import read_temperature

  temperature = 1.0
  if args.calibrated and prepared.step is not None:
    temperature = read_temperature(args.workdir, prepared.step)
  elif args.calibrated:
    temperature = weights.read_temperature(args.weights)
  run = collector(prepared, views)

  def answer(corrupt: "Corrupt | None") -> "Answers":
    return run(corrupt).at_temperature(temperature)

  return answer
