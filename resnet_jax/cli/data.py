"""`resnet-jax data check`: looks at a data set before training on it."""

import argparse
import dataclasses
import json
import os
import sys

from rich.console import Console

from resnet_jax.cli.options import (
  add_number,
)
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.runtime.errors import (
  NotFoundError,
  flags_of_settings,
)

TEXT = "Look at a data set before training on it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  text = (
    "Read every image of every split: what is there, what cannot be read, what is "
    "there twice. Exit status: 0 if all can be read and no file is in two splits, "
    "else 1; 2 wrong usage."
  )
  check = commands.add_parser("check", help=text, description=text)
  check.add_argument("source", metavar="SOURCE", help="folder, .csv or a TFDS set")
  check.add_argument("--data-dir", metavar="DIR", help="of TFDS; SOURCE is a set in it")
  check.add_argument(
    "--val-share",
    type=float,
    metavar="X",
    default=DataConfig().val_share,
    help="of each class, if SOURCE has no splits (%(default)s)",
  )
  add_number(check, "--max-pixels", "an image with more is unreadable (100 million)")
  check.add_argument(
    "--picture",
    metavar="FILE",
    default="contact_sheet.png",
    help="some training images, .png (%(default)s); '' is none",
  )
  check.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from rich.progress import Progress

  from resnet_jax.config.validation import validate
  from resnet_jax.data.audit import scan
  from resnet_jax.data.audit.report import describe

  source = os.path.expanduser(args.source)
  is_folder = args.data_dir is None and os.path.exists(source)
  config = DataConfig(name=args.source, dir=args.data_dir or "")
  if is_folder:
    config.name, config.dir = "folder", args.source
  config.val_share = args.val_share
  config.max_pixels = args.max_pixels or config.max_pixels
  console = Console(stderr=True)
  progress = Progress(console=console, transient=True, disable=not console.is_terminal)
  names = {
    "data.name": "SOURCE",
    "data.dir": "SOURCE" if is_folder else "--data-dir",
    "data.val_share": "--val-share",
    "data.max_pixels": "--max-pixels",
  }
  with flags_of_settings(names):
    validate(Config(data=config))
    try:
      report = scan.scan(config, args.picture, progress)
    except NotFoundError as error:
      if args.data_dir is not None:
        raise
      text = f"there is no folder or .csv file {args.source!r}, and {error}"
      raise NotFoundError(text) from error
  if args.json:
    print(json.dumps(dataclasses.asdict(report) | {"ok": report.ok}))
  else:
    print(describe(report))
  if not report.ok:
    sys.exit(1)
