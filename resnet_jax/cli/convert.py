"""`resnet-jax convert`: converts a run to weights, or weights to a run."""

import argparse

from resnet_jax.cli.options import (
  MODEL_FLAGS,
  add_checkpoint,
  add_trust_code,
  add_weights,
  add_workdir,
  model_config,
  require,
)
from resnet_jax.runtime.errors import UserError, flags_of_settings
from resnet_jax.runtime.terminal import show

TEXT = (
  "Convert between runs and weights: write a run or weights as a .safetensors file "
  "that PyTorch reads, or write weights as a run."
)
EXAMPLES = (
  "resnet-jax convert --workdir RUN --out mine.safetensors",
  "resnet-jax convert --weights resnet50.pth --model resnet50 --out NEW",
  "resnet-jax convert --workdir RUN --format timm --out FOLDER",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  add_workdir(parser)
  add_weights(parser)
  add_form(
    parser,
    "",
    "write --out as a folder for this library, with a model card (default: a "
    ".safetensors file)",
  )
  add_checkpoint(parser)
  add_trust_code(parser)
  parser.add_argument(
    "--out",
    metavar="PATH",
    help="what to write: a .safetensors file; with --format a folder; or, for "
    "--weights, a new run directory",
  )
  parser.set_defaults(
    source=None,
    former_words={"source": "--workdir RUN or --weights FILE", "out": "--out PATH"},
  )


def add_form(parser: argparse.ArgumentParser, default: str, text: str) -> None:
  """Adds the flags for the form of weights that are written."""
  parser.add_argument(
    "--dtype",
    choices=["float32", "float16"],
    default="float32",
    help="dtype of the tensors; float16 is half as large (default: %(default)s)",
  )
  parser.add_argument(
    "--format",
    default=default,
    choices=["timm", "torchvision", "transformers", "flax-resnet"],
    help=text,
  )
  parser.add_argument(
    "--license",
    default="",
    metavar="NAME",
    help="license of the weights for the model card, such as mit (default: not stated)",
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference.convert import convert

  given = [x for x in (args.source, args.workdir, args.weights) if x is not None]
  if len(given) != 1:
    raise UserError("needs either --workdir RUN or --weights FILE")
  require(args, "--out", "PATH")
  model = model_config(args)
  with flags_of_settings(MODEL_FLAGS):
    done = convert(
      *(given[0], args.out, model, args.checkpoint, args.trust_code, args.dtype),
      ema=args.ema,
      form=args.format,
      license_name=args.license,
    )
  show(done)
