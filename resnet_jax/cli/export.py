"""`resnet-jax export`: writes a network to a file that runs without this package."""

import argparse
import os
from pathlib import Path

from resnet_jax.cli.options import (
  add_former_names,
  add_trained,
  check_source,
  require,
)
from resnet_jax.cli.photos import load_classifier
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show

TEXT = (
  "Write a network as one file that runs without this package: images in, "
  "probabilities out, any batch size. Then read the file, and compare its "
  "probabilities with the network's."
)
EXAMPLES = (
  "resnet-jax export --workdir RUN --out net.onnx",
  "resnet-jax export --workdir RUN --out net.stablehlo --photo-size 480x640",
)
_FORMATS = "stablehlo", "onnx"  # Also the suffixes of such files.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
    "--out", metavar="FILE", help="file to write: NAME.onnx or NAME.stablehlo"
  )
  parser.add_argument(
    "--format",
    choices=_FORMATS,
    help="onnx for ONNX Runtime, or stablehlo for jax.export.deserialize on CPU, CUDA "
    "and TPU (default: the suffix of --out)",
  )
  size = parser.add_argument(
    "--photo-size",
    type=_size,
    metavar="HxW",
    help="height and width in pixels of photos that the file itself resizes and crops "
    "(default: none; resize and crop photos before you pass them to the file)",
  )
  add_former_names(parser, size, "--image-size")
  add_trained(parser)
  parser.set_defaults(former_words={"out": "--out FILE"})


def _size(text: str) -> tuple[int, int]:
  sides = text.split("x")
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH, such as 480x640")
  return int(sides[0]), int(sides[1])


def _format(args: argparse.Namespace) -> str:
  """Returns --format, or else the format that the suffix of --out names."""
  suffix = Path(args.out).suffix[1:]
  form: str = args.format or suffix
  if form not in _FORMATS:
    raise UserError(
      f"--out {args.out!r} must end in .onnx or .stablehlo, or give --format"
    )
  return form


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference.export import export

  require(args, "--out", "FILE")
  form = _format(args)
  folder = os.path.dirname(os.path.abspath(args.out))
  if not os.path.isdir(folder) or os.path.isdir(args.out):
    raise UserError(f"--out {args.out!r} must be a file in an existing folder")
  check_source(args)
  classifier = load_classifier(args)
  difference = export(classifier, args.out, form, args.photo_size)
  size = classifier.preprocessing
  height, width = args.photo_size or (size.crop, size.crop)
  steps = ["turn it upright (EXIF)"]
  if args.photo_size is None:
    if size.resize:
      steps.append(f"resize the short side to {size.resize} ({size.interpolation})")
    steps.append(f"cut the middle {height}x{width}")
  kind = "uint8"
  if size.max_value:
    kind = "uint16"
    steps.append(f"multiply its values by 65535 / {size.max_value}")
  show(
    f"{classifier.name} -> {args.out} ({os.path.getsize(args.out) / 1e6:.1f} MB)",
    f"images [batch, {height}, {width}, {classifier.channels}] {kind} -> probabilities "
    f"[batch, {len(classifier.class_names)}] float32",
    f"prepare each image first: {', '.join(steps)}",
    f"probabilities of the file and of the network differ by {difference:.1g} at most",
  )
