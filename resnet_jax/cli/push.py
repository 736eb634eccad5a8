"""`resnet-jax push`: uploads weights to the Hugging Face hub."""

import argparse
import tempfile
from pathlib import Path

from resnet_jax.cli.convert import add_form
from resnet_jax.cli.options import add_checkpoint, add_trust_code
from resnet_jax.runtime.terminal import show

TEXT = (
  "Upload weights to the Hugging Face hub: the weights of a run, with a model card, "
  "curves and class names."
)
EXAMPLES = (
  "resnet-jax push RUN hf://owner/name --license mit",
  "resnet-jax push RUN hf://owner/name --format timm --private",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument("source", metavar="SOURCE", help="run, or file of weights")
  parser.add_argument(
    "target",
    metavar="hf://OWNER/NAME",
    help="repository, which is made if there is none; @BRANCH may follow",
  )
  add_form(
    parser,
    "flax-resnet",
    "library that loads the weights; this package reads all of them (default: "
    "%(default)s)",
  )
  parser.add_argument(
    "--private", action="store_true", help="make a new repository private"
  )
  add_checkpoint(parser)
  add_trust_code(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference.convert import convert
  from resnet_jax.weights import hub

  address = hub.check_repository(args.target)
  with tempfile.TemporaryDirectory() as folder:
    done = convert(
      args.source,
      folder,
      which=args.checkpoint,
      trust_code=args.trust_code,
      dtype=args.dtype,
      form=args.format,
      license_name=args.license,
      address=address,
    )
    what = done.rpartition(" -> ")[0]
    url = hub.upload(Path(folder), args.target, args.private)
  show(f"{what} -> {url}")
