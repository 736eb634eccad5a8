"""`resnet-jax models`: lists the networks of the package."""

import argparse

from resnet_jax.runtime.terminal import show

TEXT = "List the networks that --model and --config.model.name take, with their blocks."
EXAMPLES = ("resnet-jax models",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds no flags."""


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.models.architectures import MODELS

  del args
  width = max(map(len, MODELS))
  for name, row in MODELS.items():
    stages = ", ".join(map(str, row["stage_sizes"]))
    show(f"{name:{width}}  {row['num_classes']:5,} classes  blocks {stages}")
