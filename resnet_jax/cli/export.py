"""`resnet-jax export`: a network as one file that needs none of this package."""

import argparse
import os

from resnet_jax.cli.options import (
  add_trained,
  check_source,
)
from resnet_jax.cli.photos import load_classifier
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show

TEXT = (
  "Write a network as one file that runs without this package: uint8 images in, "
  "probabilities out, any batch size. It is read again and compared."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument("target", metavar="OUT")
  parser.add_argument(
    "--format",
    required=True,
    choices=["stablehlo", "onnx"],
    help="for jax.export.deserialize on CPU, CUDA and TPU; or for ONNX Runtime",
  )
  parser.add_argument(
    "--image-size",
    type=_size,
    metavar="HxW",
    help="of the images it is given, if they are not yet resized and cropped",
  )
  add_trained(parser)


def _size(text: str) -> tuple[int, int]:
  sides = text.split("x")
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH, such as 480x640")
  return int(sides[0]), int(sides[1])


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference.export import export

  folder = os.path.dirname(os.path.abspath(args.target))
  if not os.path.isdir(folder) or os.path.isdir(args.target):
    raise UserError(f"OUT {args.target!r} must be a file in a folder that is there")
  check_source(args)
  classifier = load_classifier(args)
  difference = export(classifier, args.target, args.format, args.image_size)
  size = classifier.preprocessing
  height, width = args.image_size or (size.crop, size.crop)
  steps = ["turn it upright (EXIF)"]
  if args.image_size is None:
    if size.resize:
      steps.append(f"resize the short side to {size.resize} ({size.interpolation})")
    steps.append(f"cut the middle {height}x{width}")
  show(
    f"{classifier.name} -> {args.target} ({os.path.getsize(args.target) / 1e6:.1f} MB)",
    f"images [batch, {height}, {width}, {classifier.channels}] uint8 -> probabilities "
    f"[batch, {len(classifier.class_names)}] float32",
    f"before, for each image: {', '.join(steps)}",
    f"read again, probabilities differ by {difference:.1g} at most",
  )
