"""`resnet-jax features`: what a network sees in images, as vectors or maps."""

import argparse
import os
from typing import TYPE_CHECKING

from resnet_jax.cli.options import (
  add_number,
  add_trained,
  check_source,
)
from resnet_jax.cli.photos import (
  BATCH_SIZE,
  Meter,
  check_figure,
  load_classifier,
  show_left_out,
)
from resnet_jax.config.schema import DataConfig
from resnet_jax.runtime.errors import (
  flags_of_settings,
)

if TYPE_CHECKING:  # JAX takes seconds, for which `--help` need not wait.
  from resnet_jax.data import Source

TEXT = (
  "Write what the network sees in images, as .npz: features, files, labels, "
  "class_names. Exit status 1 if an image cannot be read."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument("source", metavar="SOURCE", help="folder, .csv or a TFDS set")
  parser.add_argument("target", metavar="OUT.npz")
  add_trained(parser)
  add_number(parser, "--batch-size", f"images at once ({BATCH_SIZE})")
  parser.add_argument("--data-dir", metavar="DIR", help="of TFDS; SOURCE is in it")
  parser.add_argument(
    "--split", default="", help="if not all of a folder, or a set's for evaluation"
  )
  parser.add_argument(
    "--layer", default="pooled", help="pooled, what the head sees, or a map: c2 to c5"
  )
  parser.add_argument(
    "--figure", metavar="OUT.png", help="draw some images with their nearest ones"
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.inference import embed

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
        args.target,
        layer=args.layer,
        batch_size=batch_size,
        figure=args.figure or "",
        advance=meter.advance,
      )
  meter.finish()


def _open_source(args: argparse.Namespace) -> "Source":
  from pathlib import Path

  from resnet_jax.data.sources.opening import open_source
  from resnet_jax.inference.embed import list_all

  path = Path(os.path.expanduser(args.source))
  if args.data_dir is not None or not path.exists():
    config = DataConfig(name=args.source, dir=args.data_dir or "")
  elif not args.split:
    files = list_all(path, DataConfig().val_share)
    if path.is_dir():
      show_left_out(str(path), len(files))
    return files
  else:
    config = DataConfig(name="folder", dir=str(path))
  return open_source(config, args.split)
