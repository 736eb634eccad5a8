"""`resnet-jax convert`: converts weights from a run or to one."""

import argparse

from resnet_jax.cli.options import (
  add_checkpoint,
  add_model_options,
  add_trust_code,
  model_config,
)
from resnet_jax.runtime.terminal import show

TEXT = "Convert weights from a run or to one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
    "source", metavar="SRC", help="run, weight file, hf://owner/name, name of weights"
  )
  parser.add_argument("target", metavar="DST", help="FILE.safetensors or a new run")
  parser.add_argument("--model", help="architecture of a SRC that does not name it")
  parser.add_argument(
    "--dtype",
    choices=["float32", "float16"],
    default="float32",
    help="of the numbers in FILE.safetensors (%(default)s); float16 is half as large",
  )
  add_model_options(parser)
  add_checkpoint(parser)
  add_trust_code(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference.convert import convert

  show(
    convert(
      args.source,
      args.target,
      model_config(args),
      args.checkpoint,
      args.trust_code,
      args.dtype,
    )
  )
