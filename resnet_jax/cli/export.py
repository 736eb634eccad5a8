"""`resnet-jax export`: writes a network to a file that runs without this package."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_jax.cli.kinds import check_export
from resnet_jax.cli.options import (
  add_former_names,
  add_number,
  add_trained,
  check_source,
  require,
)
from resnet_jax.cli.photos import load_classifier
from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.inference.classifier import Classifier

TEXT = (
  "Write a network as a file that runs without this package: images in, probabilities "
  "out, any batch size. Then read the file, and compare its probabilities with the "
  "network's."
)
EXAMPLES = (
  "resnet-jax export --workdir RUN --out net.onnx",
  "resnet-jax export --workdir RUN --out net.stablehlo --photo-size 480x640",
  "resnet-jax export --workdir RUN --out net.xml --precision int8",
)
# Suffix of a file -> its format.
_FORMATS = {"stablehlo": "stablehlo", "onnx": "onnx", "xml": "openvino"}
_PRECISIONS = "float32", "float16", "bfloat16", "int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
    "--out",
    metavar="FILE",
    help="file to write: NAME.onnx, NAME.stablehlo, or NAME.xml for OpenVINO, whose "
    "weights go to NAME.bin",
  )
  parser.add_argument(
    "--format",
    choices=_FORMATS.values(),
    help="onnx for ONNX Runtime, openvino for OpenVINO, or stablehlo for "
    "jax.export.deserialize on CPU, CUDA and TPU (default: the suffix of --out)",
  )
  parser.add_argument(
    "--precision",
    choices=_PRECISIONS,
    default="float32",
    help="type of the weights in the file. float16 and bfloat16 halve the file; the "
    "computation stays in float32. int8 also computes in 8 bits; it needs --workdir "
    "(default: %(default)s)",
  )
  add_number(
    parser,
    "--calibration-images",
    "with int8: number of training images that set the ranges, > 0 (default: 512)",
  ).default = 512
  parser.add_argument(
    "--max-loss",
    type=_points,
    default=1.0,
    metavar="POINTS",
    help="with int8: write nothing if the accuracy on the evaluation images falls by "
    "more percentage points than this, in [0, 100] (default: %(default)s)",
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


def _points(text: str) -> float:
  try:
    points = float(text)
  except ValueError:
    points = -1.0
  if not 0 <= points <= 100:
    raise argparse.ArgumentTypeError(f"{text!r} must be a number in [0, 100]")
  return points


def _size(text: str) -> tuple[int, int]:
  sides = text.split("x")
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH, such as 480x640")
  return int(sides[0]), int(sides[1])


def _format(args: argparse.Namespace) -> str:
  """Returns --format, or else the format that the suffix of --out names."""
  form: str = args.format or _FORMATS.get(Path(args.out).suffix[1:], "")
  if not form:
    raise UserError(
      f"--out {args.out!r} must end in .onnx, .stablehlo or .xml, or give --format"
    )
  if form == "openvino" and not args.out.endswith(".xml"):
    raise UserError(f"--out {args.out!r} must end in .xml with --format openvino")
  return form


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference.export import Int8, export
  from resnet_jax.inference.run_images import open_run_images

  require(args, "--out", "FILE")
  form = _format(args)
  folder = os.path.dirname(os.path.abspath(args.out))
  if not os.path.isdir(folder) or os.path.isdir(args.out):
    raise UserError(f"--out {args.out!r} must be a file in an existing folder")
  check_source(args)
  net, int8 = load_classifier(args, dense=True), None
  check_export(args, net.labels)
  if args.precision == "int8" and args.workdir is not None:
    images = open_run_images(args.workdir, args.trust_code, net)
    int8 = Int8(images, args.calibration_images, args.max_loss)
  found = export(net, args.out, form, args.photo_size, args.precision, int8)
  if int8:
    last = (
      f"int8 loses {found:.2f} percentage points of accuracy; {args.out}.json has both "
      "accuracies"
    )
  else:
    last = f"{net.answer} of the file and of the network differ by {found:.1g} at most"
  show(*_describe(args, net), last)


def _describe(args: argparse.Namespace, net: "Classifier") -> list[str]:
  """Returns lines that say what was written, and what images it takes."""
  from resnet_jax.data.images.boxed_images import PADDING

  size = net.preprocessing
  height, width = args.photo_size or (size.crop, size.crop)
  steps = ["turn it upright (EXIF)"]
  if args.photo_size is None:
    if size.resize:
      steps.append(f"resize the short side to {size.resize} ({size.interpolation})")
    steps.append(f"cut the middle {height}x{width}")
  answer = f"[batch, {len(net.class_names)}]"
  if net.labels in DENSE_LABELS:
    value = "0" if net.labels == "mask" else f"{PADDING} of white"
    steps[1:] = [
      f"resize the long side to {size.crop} ({size.interpolation})",
      f"pad it with {value} at the right and the bottom to {height}x{width}",
    ]
    answer = f"[batch, {height}, {width}, {len(net.class_names)}]"
  if net.labels == "boxes":
    answer = f"[batch, anchors, 4 + {len(net.class_names)}]: box and probabilities"
  kind = "uint8"
  if size.max_value:
    kind = "uint16"
    steps.append(f"multiply its values by 65535 / {size.max_value}")
  out = Path(args.out).expanduser()
  files = [out, out.with_suffix(".bin")] if out.suffix == ".xml" else [out]
  written = sum(file.stat().st_size for file in files)
  return [
    f"{net.name} -> {args.out} ({written / 1e6:.1f} MB)",
    f"images [batch, {height}, {width}, {net.channels}] {kind} -> {net.answer} float32 "
    f"{answer}",
    f"prepare each image first: {', '.join(steps)}",
  ]
