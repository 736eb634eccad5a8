"""Flags that several commands of `resnet-jax` have, and what they say."""

import argparse

from resnet_jax.config.schema import ModelConfig
from resnet_jax.runtime.errors import UserError


def add_number(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
  """Adds a flag that takes a whole number > 0."""

  def positive(value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
      raise argparse.ArgumentTypeError(f"{value!r} must be a whole number > 0")
    return int(value)

  parser.add_argument(flag, type=positive, metavar="N", help=text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
  """Adds the settings of `ModelConfig` that change which parameters there are."""
  add_number(parser, "--num-classes", "if not the model's own")
  for name in ("stem", "shortcut"):
    parser.add_argument(f"--{name}", default="", help="if not the model's own")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
  """Adds which state of a run is meant."""
  parser.add_argument(
    "--checkpoint", default="latest", help="of a run: latest, best or a step"
  )


def add_trust_code(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that lets the code run that a run or a config.json names."""
  parser.add_argument(
    "--trust-code",
    action="store_true",
    help="run code that only a run or a config.json names",
  )


def add_trained(parser: argparse.ArgumentParser) -> None:
  """Adds what names a trained network, and what changes its preprocessing."""
  parser.add_argument("--workdir", metavar="RUN", help="the directory of a run")
  parser.add_argument("--model", help="architecture of weights that do not name it")
  parser.add_argument(
    "--weights",
    metavar="FILE",
    help="weight file, hf://owner/name, or a name such as resnet20_cifar10",
  )
  add_model_options(parser)
  add_checkpoint(parser)
  add_trust_code(parser)
  add_number(parser, "--resize", "short side of photos in pixels, before the crop")
  add_number(parser, "--crop", "side of the square that is cut from photos")
  for name in ("mean", "std"):
    parser.add_argument(
      f"--{name}", type=float, nargs="+", help="of pixels in [0, 1]; else the weights'"
    )


def model_config(args: argparse.Namespace) -> ModelConfig:
  """Returns the model that the flags name; one without a name if they name none."""
  if not args.model and (args.num_classes or args.stem or args.shortcut):
    raise UserError("--num-classes, --stem and --shortcut need --model")
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
    for flag in ("model", "weights", "num_classes", "stem", "shortcut"):
      if getattr(args, flag):
        raise UserError(f"--{flag.replace('_', '-')} is for --weights, not --workdir")
  elif not args.weights:
    raise UserError("needs --workdir RUN or --weights FILE")
  elif args.checkpoint != "latest":
    raise UserError("--checkpoint is for --workdir, not --weights")
