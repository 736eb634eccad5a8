"""`resnet-jax convert`: converts weights from a run or to one."""

import argparse

from resnet_jax.cli.options import (
  add_checkpoint,
  add_model_options,
  add_trust_code,
  model_config,
)
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show

TEXT = "Convert weights from a run or to one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument("source", metavar="SRC", help="run, weight file, hf://owner/name")
  parser.add_argument("target", metavar="DST", help="FILE.safetensors or a new run")
  parser.add_argument("--model", help="architecture of a SRC that is no run")
  add_model_options(parser)
  add_checkpoint(parser)
  add_trust_code(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference.convert import convert

  if args.model is None and (args.num_classes or args.stem or args.shortcut):
    raise UserError("--num-classes, --stem and --shortcut need --model")
  model = None if args.model is None else model_config(args)
  show(convert(args.source, args.target, model, args.checkpoint, args.trust_code))
