"""The command line `resnet-jax`: one command for each use of a network."""

import argparse
import logging
import os
import re
import sys
import textwrap
from collections.abc import Sequence

import absl.logging

from resnet_jax import __version__
from resnet_jax.cli import (
  compare,
  completion,
  configs,
  convert,
  data,
  dryrun,
  evaluate,
  export,
  features,
  hash,
  info,
  lr_find,
  models,
  predict,
  push,
  study,
  summary,
  sweep,
  train,
)
from resnet_jax.cli.options import (
  Parser,
  list_examples,
  refuse_unknown,
  take_former_words,
)
from resnet_jax.config.allowed import suggest
from resnet_jax.runtime.errors import UserError, clean_errors
from resnet_jax.runtime.terminal import escape_unknown_letters

# In the order of the help. Each module has TEXT, EXAMPLES, `add_arguments`, `run`.
COMMANDS = {
  "train": train,
  "configs": configs,
  "models": models,
  "evaluate": evaluate,
  "compare": compare,
  "predict": predict,
  "features": features,
  "export": export,
  "convert": convert,
  "push": push,
  "summary": summary,
  "data": data,
  "study": study,
  "sweep": sweep,
  "lr-find": lr_find,
  "dryrun": dryrun,
  "hash": hash,
  "info": info,
  "completion": completion,
}
# These take the settings of an experiment: --config.a.b=value.
_WITH_SETTINGS = {"train", "study", "sweep", "lr-find", "dryrun"}
# Other programs' names for our commands.
_OTHER_NAMES = {
  "train": "fit finetune fine-tune resume",
  "configs": "recipes",
  "evaluate": "test val validate score",
  "predict": "infer inference classify",
  "compare": "diff",
  "features": "embed extract",
  "export": "onnx",
  "push": "upload publish share",
  "data": "check dataset",
  "sweep": "search tune hpo",
  "lr-find": "lr_find find-lr lr-range-test lr-finder",
  "info": "env version",
}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line `argv`; None is the command line of the process.

  Exit status: 0 for success, 1 for failure, 2 for wrong usage.
  """
  escape_unknown_letters()
  # Libraries also log the errors that they raise. `clean_errors` shows each one once.
  absl.logging.set_verbosity(absl.logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  words = _with_hyphens(sys.argv[1:] if argv is None else argv)
  with clean_errors():
    _check_command(words)
    args, rest = create_parser().parse_known_args(words)
    rest = take_former_words(args, rest)
    for name, value in vars(args).items():
      if isinstance(value, str) and value.startswith("~"):
        # A shell expands the ~ of `--flag ~/x`, but not that of `--flag=~/x`.
        setattr(args, name, os.path.expanduser(value))
    refuse_unknown(args, rest, args.takes_settings)
    args.settings = rest
    COMMANDS[args.command].run(args)


def _with_hyphens(words: Sequence[str]) -> list[str]:
  """Writes flags like `--num_classes` as `--num-classes`; leaves settings alone."""
  return [
    re.sub(
      r"^--(?!(no)?config\.)[a-z_-]+", lambda flag: flag[0].replace("_", "-"), word
    )
    for word in words
  ]


def _check_command(words: Sequence[str]) -> None:
  """Raises `UserError`, naming similar commands, if the first word is no command."""
  word = words[0] if words else ""
  if word in {*COMMANDS, "-h", "--help", "--version"}:
    return
  if not word or word.startswith("-"):
    said = f", before {word}" if word else ""
    raise UserError(
      f"needs a command{said}, such as `resnet-jax train`; `resnet-jax --help` lists "
      "all"
    )
  near = [name for name, others in _OTHER_NAMES.items() if word in others.split()]
  advice = f"did you mean {near[0]}?" if near else suggest(word, COMMANDS)
  raise UserError(f"there is no command {word!r}; {advice} (`resnet-jax --help`)")


def create_parser() -> Parser:
  """Returns the parser of all commands."""
  parser = Parser(
    prog="resnet-jax",
    description="Train residual networks, and use them. Begin with `resnet-jax train`.",
  )
  parser.add_argument(
    "--version", action="version", version=__version__, help="print the version"
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
  for name, command in COMMANDS.items():
    text = command.TEXT
    # `train` has its own --help, which also shows the settings of the chosen config.
    added = commands.add_parser(
      name,
      help=text.split(". ")[0],
      description=textwrap.fill(text, 80),
      epilog=list_examples(command.EXAMPLES),
      add_help=name != "train",
    )
    takes_settings = name in _WITH_SETTINGS
    added.set_defaults(parser=added, root=parser, takes_settings=takes_settings)
    added.add_argument(
      "--version", action="version", version=__version__, help=argparse.SUPPRESS
    )
    command.add_arguments(added)
  return parser
