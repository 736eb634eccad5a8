"""The command line `resnet-jax`: one command for each use of a network."""

import argparse
import logging
import os
from typing import Any, NoReturn

import absl.logging

from resnet_jax import __version__
from resnet_jax.cli import (
  configs,
  convert,
  data,
  dryrun,
  evaluate,
  export,
  features,
  hash,
  info,
  predict,
  study,
  summary,
  sweep,
  train,
)
from resnet_jax.runtime.errors import UserError, clean_errors, fail
from resnet_jax.runtime.terminal import escape_unknown_letters

# In the order of a first look. Each has TEXT, `add_arguments` and `run`.
COMMANDS = {
  "train": train,
  "configs": configs,
  "evaluate": evaluate,
  "predict": predict,
  "features": features,
  "export": export,
  "convert": convert,
  "summary": summary,
  "data": data,
  "study": study,
  "sweep": sweep,
  "dryrun": dryrun,
  "hash": hash,
  "info": info,
}
# These take the settings of an experiment: --config.a.b=value.
_WITH_SETTINGS = {"train", "study", "sweep", "dryrun"}


def main(argv: list[str] | None = None) -> None:
  """Runs the command line `argv`, or the process's own.

  Exit status: 0 done, 1 it failed, 2 wrong usage.
  """
  escape_unknown_letters()
  absl.logging.set_verbosity(absl.logging.FATAL)  # What is raised is shown once.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  with clean_errors():
    args, rest = create_parser().parse_known_args(argv)
    for name, value in vars(args).items():
      if isinstance(value, str) and value.startswith("~"):
        # A shell expands the ~ of `--flag ~/x`, but not that of `--flag=~/x`.
        setattr(args, name, os.path.expanduser(value))
    if rest and args.command not in _WITH_SETTINGS:
      raise UserError(f"unrecognized arguments: {' '.join(rest)}; see --help")
    args.settings = rest
    COMMANDS[args.command].run(args)


class _Parser(argparse.ArgumentParser):
  def __init__(self, **kwargs: Any) -> None:
    super().__init__(allow_abbrev=False, **kwargs)

  def error(self, message: str) -> NoReturn:
    fail(2, f"{message}; {self.prog} --help says more")


def create_parser() -> argparse.ArgumentParser:
  """Returns the parser of all commands."""
  parser = _Parser(
    prog="resnet-jax",
    description="Train residual networks, and use them. Begin with `resnet-jax train`.",
  )
  parser.add_argument("--version", action="version", version=__version__)
  commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
  for name, command in COMMANDS.items():
    text = command.TEXT
    # `train --help` also shows the settings, whose defaults are those of its --config.
    added = commands.add_parser(
      name, help=text.split(". ")[0], description=text, add_help=name != "train"
    )
    command.add_arguments(added)
  return parser
