"""`resnet-jax features`: writes the vectors or maps that a network makes of images."""

import argparse
import os
from typing import TYPE_CHECKING

from resnet_jax.cli.options import (
  SOURCE,
  add_data_dir,
  add_number,
  add_trained,
  check_source,
  data_config,
  require,
)
from resnet_jax.cli.photos import (
  BATCH_SIZE,
  Meter,
  add_engine,
  check_figure,
  load_classifier,
  show_left_out,
)
from resnet_jax.runtime.errors import flags_of_settings

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.data import Source

TEXT = (
  "Write the network's features of images as .npz, with their files, labels and "
  "class_names. The exit status is 1 if an image cannot be read."
)
EXAMPLES = (
  "resnet-jax features PHOTOS --workdir RUN --out features.npz",
  "resnet-jax features PHOTOS --workdir RUN --out features.npz --figure neighbours.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument("source", metavar="SOURCE", help=SOURCE)
  parser.add_argument("--out", metavar="FILE.npz", help="file to write")
  add_trained(parser)
  add_number(
    parser, "--batch-size", f"number of images per step (default: {BATCH_SIZE})"
  )
  add_engine(parser)
  add_data_dir(parser)
  parser.add_argument(
    "--split",
    default="",
    help="split whose images are taken, such as test (default: all images of a folder, "
    "or the validation or test split of a TFDS data set)",
  )
  parser.add_argument(
    "--layer",
    default="pooled",
    help="pooled (the vectors that the head takes) or a feature map, c2 to c5 "
    "(default: %(default)s)",
  )
  parser.add_argument(
    "--figure",
    metavar="FILE.png",
    help="draw some images with their nearest neighbours into this file (default: "
    "none)",
  )
  parser.set_defaults(former_words={"out": "--out FILE.npz"})


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference import embed

  require(args, "--out", "FILE.npz")
  check_source(args)
  check_figure(args.figure)
  names = {"data.name": "SOURCE", "data.dir": "SOURCE"}
  names |= {"data.eval_crop": "--crop", "data.eval_resize": "--resize"}
  names["data.eval_split"] = "--split"
  if args.data_dir is not None:
    names["data.dir"] = "--data-dir"
  with flags_of_settings(names):
    source = _open_source(args)
    classifier = load_classifier(args)
    batch_size = args.batch_size or BATCH_SIZE
    meter = Meter(len(source), batch_size)
    with meter.progress:
      embed.extract(
        classifier,
        source,
        args.out,
        layer=args.layer,
        batch_size=batch_size,
        figure=args.figure or "",
        advance=meter.advance,
      )
  meter.finish()


def _open_source(args: argparse.Namespace) -> "Source":
  from resnet_jax.data.sources.folder import find_root
  from resnet_jax.data.sources.opening import open_source
  from resnet_jax.inference.embed import list_all

  config = data_config(args.source, args.data_dir)
  if config.name == "folder" and not args.split:
    files = list_all(find_root(config.dir), config.val_share)
    if os.path.isdir(config.dir):
      show_left_out(config.dir, len(files))
    return files
  return open_source(config, args.split)
