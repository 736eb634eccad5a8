"""`resnet-jax configs`: lists the config files of the package."""

import argparse

from rich.console import Console
from rich.table import Table

from resnet_jax.config.files import list_configs
from resnet_jax.runtime.terminal import plain

TEXT = "List the configs that --config takes by name, with what each of them trains."
EXAMPLES = ("resnet-jax configs",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds no flags."""


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  del args
  table = Table("config", "what it trains", box=None)
  for name, line in list_configs().items():
    table.add_row(plain(name), plain(line))
  Console().print(table)
