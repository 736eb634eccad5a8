"""`resnet-jax completion`: prints a script that completes commands in a shell."""

import argparse

from resnet_jax.cli.options import parsers_of_commands
from resnet_jax.config.fields import walk
from resnet_jax.config.files import list_configs
from resnet_jax.config.schema import Config

TEXT = (
  "Print a script with which the Tab key completes commands, flags, settings and their "
  "values in a shell."
)
EXAMPLES = (
  'eval "$(resnet-jax completion bash)"',
  "resnet-jax completion bash > ~/.local/share/bash-completion/completions/resnet-jax",
  "resnet-jax completion zsh > ~/.zsh/completions/_resnet-jax",
  "resnet-jax completion fish > ~/.config/fish/completions/resnet-jax.fish",
)
_SHELLS = "bash", "zsh", "fish"
# Metavars of the flags that take folders, and of those that take other paths.
_FOLDERS = {"RUN", "DIR"}
_PATHS = {"FILE", "FILE.png", "FILE.npz", "PATH", "IMAGE_OR_DIR", "SOURCE"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
    "shell", metavar="SHELL", choices=_SHELLS, help=f"one of {', '.join(_SHELLS)}"
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  import shtab

  _add_choices(args.root)
  print(shtab.complete(args.root, args.shell))


def _add_choices(parser: argparse.ArgumentParser) -> None:
  """Adds the settings, and the values to complete, to the parsers of the commands."""
  import shtab

  from resnet_jax.experiments.studies.grids import STUDIES
  from resnet_jax.models.architectures import MODELS

  for command in parsers_of_commands(parser):
    name = command.prog.rpartition(" ")[2]
    if command.get_default("takes_settings"):
      for path, field, _ in walk(Config()):
        values = ("true", "false") if field.type is bool else None
        command.add_argument(
          f"--config.{path}", choices=values or field.metadata.get("choices") or None
        )
    choices = {
      "config": list(list_configs()),
      "model": list(MODELS),
      "config.model.name": list(MODELS),
      "name": list(STUDIES) if name == "study" else None,
    }
    for action in command._actions:
      action.choices = choices.get(action.dest) or action.choices
      if action.metavar in _FOLDERS or action.dest == "config.data.dir":
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
      elif action.metavar in _PATHS:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
