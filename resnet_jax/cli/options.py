"""Flags that commands of `resnet-jax` share, their former names, and usage errors.

A flag has the same meaning in all commands: `--workdir` is a run, `--weights` a file of
weights, `--out` the output, `--data-dir` the directory of TFDS data sets.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from resnet_jax.config.allowed import suggest
from resnet_jax.config.fields import advise
from resnet_jax.config.schema import DataConfig, ModelConfig
from resnet_jax.runtime.errors import UserError, fail
from resnet_jax.runtime.terminal import printable

_OWN = "(default: the architecture's own)"
# Settings -> the flags of `add_weights` that set them. Messages name the flags.
MODEL_FLAGS = {
  f"model.{name}": f"--{flag}"
  for name, flag in (
    ("name", "model"),
    ("num_classes", "num-classes"),
    ("stem", "stem"),
    ("shortcut", "shortcut"),
  )
}
_SAVED = "(default: as the run or the weights say)"
SOURCE = (
  "folder of images, .csv file of path,label, parquet or tar files, "
  "hf://datasets/owner/name, or name of a TFDS data set"
)


class Parser(argparse.ArgumentParser):
  """A parser that reports an error in one line, and knows its flags.

  Attributes:
    flags: the flags that its help shows.
  """

  def __init__(self, **kwargs: Any) -> None:
    """Takes the arguments of `argparse.ArgumentParser`."""
    self.flags: list[str] = []
    super().__init__(
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      **kwargs,
    )

  def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
    """Adds a flag or a positional argument, like `argparse`."""
    if kwargs.get("help") != argparse.SUPPRESS:
      self.flags += [name for name in names if name.startswith("--")]
    return super().add_argument(*names, **kwargs)

  def error(self, message: str) -> NoReturn:
    """Ends the program with one line and exit status 2."""
    fail(2, f"{message}; {self.prog} --help says more")


def parsers_of_commands(
  parser: argparse.ArgumentParser,
) -> Iterator[argparse.ArgumentParser]:
  """Yields the parser of each command below `parser`, including `data check`."""
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for command in action.choices.values():
        yield command
        yield from parsers_of_commands(command)


class _FormerName(argparse.Action):
  """Stores the value of a flag with a former name; prints the new name as a hint."""

  def __init__(self, *args: Any, new: str, **kwargs: Any) -> None:
    super().__init__(*args, **kwargs)
    self.new = new

  def __call__(
    self,
    parser: argparse.ArgumentParser,
    namespace: argparse.Namespace,
    values: Any,
    option_string: str | None = None,
  ) -> None:
    """Stores the value."""
    hint(f"{option_string} is now {self.new}; the next release refuses the old name")
    setattr(namespace, self.dest, values)


def add_former_names(
  parser: argparse.ArgumentParser, action: argparse.Action, *names: str
) -> None:
  """Accepts former names of a flag, with a hint, until the next release."""
  parser.add_argument(
    *names,
    action=_FormerName,
    new=action.option_strings[-1],
    dest=action.dest,
    type=action.type or str,
    nargs=action.nargs,
    default=argparse.SUPPRESS,
    help=argparse.SUPPRESS,
  )


def take_former_words(args: argparse.Namespace, rest: Sequence[str]) -> list[str]:
  """Assigns former positional arguments to the flags that replaced them, with a hint.

  The next release will not accept them.

  Args:
    args: the parsed arguments. A command sets `former_words`, {destination: flag}, in
      the order of the words.
    rest: the words that were not parsed.

  Returns:
    The remaining words.
  """
  former = list(getattr(args, "former_words", {}).items())
  if not 0 < len(rest) <= len(former) or any(word.startswith("-") for word in rest):
    return list(rest)
  missing = former[-len(rest) :]
  if any(getattr(args, name) is not None for name, _ in missing):
    return list(rest)
  for word, (name, flag) in zip(rest, missing, strict=True):
    hint(f"{word} is now given as {flag}; the next release refuses the bare word")
    setattr(args, name, word)
  return []


def refuse_unknown(
  args: argparse.Namespace, rest: Sequence[str], takes_settings: bool
) -> None:
  """Raises `UserError` for a word that is no flag of the command.

  If the command takes settings, `parse_settings` checks the words of settings instead.
  """
  for word in rest:
    flag = word.partition("=")[0]
    name = flag.lstrip("-")
    is_setting = name.startswith(("config.", "noconfig."))
    more = f"`{args.parser.prog} --help` lists all flags"
    if takes_settings:
      if is_setting or not flag.startswith("--"):
        continue
      advice = advise(name, "--config.", args.parser.flags) or more
    elif not flag.startswith("-"):
      raise UserError(f"{word!r} is no flag of this command; {more}")
    elif is_setting:
      advice = f"this command takes no settings; {more}"
    else:
      advice = suggest(flag, args.parser.flags, more)
    raise UserError(f"{flag} is no flag; {advice}")


def list_examples(lines: Sequence[str]) -> str:
  """Returns the end of a help text: commands to type."""
  return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def require(args: argparse.Namespace, flag: str, what: str) -> None:
  """Raises `UserError` if a flag that a command needs was not given."""
  if getattr(args, flag.lstrip("-").replace("-", "_")) is None:
    raise UserError(f"needs {flag} {what}; `{args.parser.prog} --help` says more")


def hint(text: str) -> None:
  """Prints a line to standard error that says what to do instead."""
  print(f"hint: {printable(text)}", file=sys.stderr)


def add_number(
  parser: argparse.ArgumentParser, flag: str, text: str
) -> argparse.Action:
  """Adds a flag that takes a whole number > 0."""

  def positive(value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
      raise argparse.ArgumentTypeError(f"{value!r} must be a whole number > 0")
    return int(value)

  return parser.add_argument(flag, type=positive, metavar="N", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds the flag for JSON output."""
  parser.add_argument(
    "--json", action="store_true", help="print one JSON object instead of text"
  )


def add_model_options(parser: argparse.ArgumentParser) -> None:
  """Adds the settings of `ModelConfig` that change the set of parameters."""
  add_number(
    parser,
    "--num-classes",
    "number of classes, > 0 (default: from the weights, else the architecture's own)",
  )
  parser.add_argument(
    "--stem",
    default="",
    help=f"first layers: imagenet, deep, tiered, cifar or a name in networks.md {_OWN}",
  )
  parser.add_argument(
    "--shortcut",
    default="",
    help=f"shortcut of the blocks: A, B, B3x3, C, D, highway or none {_OWN}",
  )


def add_config(parser: argparse.ArgumentParser, default: str = "") -> None:
  """Adds the flag that names a config; it is required unless there is a default."""
  parser.add_argument(
    "--config",
    metavar="NAME",
    required=not default,
    help="name that `resnet-jax configs` lists, Python file, config.json of a run, or "
    "run directory; NAME:VARIANT selects a variant of a config"
    + (f" (default: {default})" if default else ""),
  )


def add_workdir(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that names a run."""
  parser.add_argument("--workdir", metavar="RUN", help="directory of a run")


def add_weights(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that name weights and their architecture."""
  parser.add_argument(
    "--weights",
    metavar="FILE",
    help="file of weights (.safetensors, .pth, .pt, .bin), hf://owner/name, or a name "
    "of weights in the package, such as resnet20_cifar10",
  )
  parser.add_argument(
    "--model",
    metavar="NAME",
    help="architecture, such as resnet50, if the file of weights does not name it; "
    "`resnet-jax models` lists all",
  )
  parser.add_argument(
    "--ema",
    action=argparse.BooleanOptionalAction,
    help="take the exponential moving average of the weights, if a checkpoint of "
    "PyTorch has two sets of weights, or the other set",
  )
  add_model_options(parser)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that chooses a checkpoint of a run."""
  parser.add_argument(
    "--checkpoint",
    default="latest",
    metavar="WHICH",
    help="state of the run: latest, best, or the number of a step that was saved "
    "(default: %(default)s)",
  )


def add_trust_code(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that allows code named by a run or a config.json."""
  parser.add_argument(
    "--trust-code",
    action="store_true",
    help="run code even if only a run or a config.json names it",
  )


def add_trained(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that name a trained network and change its preprocessing."""
  add_workdir(parser)
  add_weights(parser)
  add_checkpoint(parser)
  add_trust_code(parser)
  add_number(
    parser,
    "--resize",
    f"length in pixels to which the short side of an image is resized {_SAVED}",
  )
  add_number(
    parser,
    "--crop",
    "side in pixels of the square that is cut out of the middle of the resized image "
    f"{_SAVED}",
  )
  for name, text in (
    ("mean", "mean that is subtracted from pixels in [0, 1]"),
    ("std", "standard deviation, in (0, 1], that divides the centred pixels"),
  ):
    parser.add_argument(
      f"--{name}",
      type=float,
      nargs="+",
      metavar="X",
      help=f"{text}; one number, or one per channel {_SAVED}",
    )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
  """Adds the flag for the directory of TFDS data sets."""
  parser.add_argument(
    "--data-dir",
    metavar="DIR",
    help="directory of TFDS data sets (default: ~/tensorflow_datasets)",
  )


def data_config(source: str, data_dir: str | None) -> DataConfig:
  """Returns the data set that SOURCE names: an existing path, or else a TFDS data set.

  A path is a folder of images, or has parquet or tar files. With `data_dir`, it is
  always a data set in that directory. A remote path that is not of the hub is taken for
  a folder, whose error says what to do.
  """
  if data_dir is None and (os.path.exists(source) or "://" in source):
    from resnet_jax.data.sources.record_files import find_kind

    return DataConfig(name=find_kind(source) or "folder", dir=source)
  return DataConfig(name=source, dir=data_dir or "")


def model_config(args: argparse.Namespace) -> ModelConfig:
  """Returns the model that the flags name; its name is "" if they name none."""
  if not args.model and (args.stem or args.shortcut):
    raise UserError("--stem and --shortcut need --model")
  return ModelConfig(
    name=args.model or "",
    num_classes=args.num_classes or 0,
    stem=args.stem,
    shortcut=args.shortcut,
    dtype="float32",
  )


def check_source(args: argparse.Namespace) -> None:
  """Raises `ValueError` unless the flags of `add_trained` name one network."""
  if args.workdir is not None:
    for flag in ("model", "weights", "num_classes", "stem", "shortcut", "ema"):
      if (value := getattr(args, flag)) or value is False:
        raise UserError(f"--{flag.replace('_', '-')} is for --weights, not --workdir")
  elif not args.weights:
    raise UserError("needs --workdir RUN or --weights FILE")
  elif args.checkpoint != "latest":
    raise UserError("--checkpoint is for --workdir, not --weights")
