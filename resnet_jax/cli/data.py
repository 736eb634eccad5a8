"""`resnet-jax data check`: checks a data set before training on it."""

import argparse
import dataclasses
import json
import sys
import textwrap

from rich.console import Console

from resnet_jax.cli.options import (
  SOURCE,
  add_data_dir,
  add_former_names,
  add_json,
  add_number,
  data_config,
  hint,
  list_examples,
)
from resnet_jax.config.data_settings import KINDS_OF_FILES
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.runtime.errors import (
  NotFoundError,
  flags_of_settings,
)

TEXT = "Check a data set before training on it."
EXAMPLES = ("resnet-jax data check PHOTOS",)
_EXAMPLES = (
  *EXAMPLES,
  "resnet-jax data check PHOTOS --figure contact_sheet.png",
  "resnet-jax data check cifar10 --data-dir DIR --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  commands = parser.add_subparsers(
    required=True, metavar="COMMAND", help="what to do with the data set"
  )
  text = (
    "Read every image of every split, and report the classes, the sizes, the "
    "unreadable images, and the images that are equal or look the same. "
    "The exit status is 1 if an image cannot be read or a file is in two splits."
  )
  check = commands.add_parser(
    "check",
    help=text.split(". ")[0],
    description=textwrap.fill(text, 80),
    epilog=list_examples(_EXAMPLES),
  )
  check.set_defaults(parser=check)
  check.add_argument("source", metavar="SOURCE", help=SOURCE)
  add_data_dir(check)
  check.add_argument(
    "--val-share",
    type=float,
    metavar="X",
    default=DataConfig().val_share,
    help="fraction of each class, in (0, 1), that is kept for evaluation if SOURCE has "
    "no splits (default: %(default)s)",
  )
  add_number(
    check,
    "--max-pixels",
    "largest number of pixels of an image; a larger one counts as unreadable (default: "
    f"{DataConfig().max_pixels:,})",
  )
  check.add_argument(
    "--labels",
    choices=("class", "classes", "numbers"),
    default="class",
    help="what the label of an image is: one class, several classes or numbers "
    "(default: %(default)s)",
  )
  figure = check.add_argument(
    "--figure",
    metavar="FILE.png",
    default="",
    help="draw some training images of each class into this file (default: none)",
  )
  add_former_names(check, figure, "--picture")
  add_json(check)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from rich.progress import Progress

  from resnet_jax.config.validation import validate
  from resnet_jax.data.audit import scan
  from resnet_jax.data.audit.report import describe

  config = data_config(args.source, args.data_dir)
  config.val_share, config.labels = args.val_share, args.labels
  config.max_pixels = args.max_pixels or config.max_pixels
  console = Console(stderr=True)
  progress = Progress(console=console, transient=True, disable=not console.is_terminal)
  names = {
    "data.name": "SOURCE",
    "data.dir": "SOURCE" if config.name in KINDS_OF_FILES else "--data-dir",
    "data.val_share": "--val-share",
    "data.max_pixels": "--max-pixels",
  }
  with flags_of_settings(names):
    validate(Config(data=config))
    try:
      report = scan.scan(config, args.figure, progress)
    except NotFoundError as error:
      if args.data_dir is not None:
        raise
      text = f"there is no folder or .csv file {args.source!r}, and {error}"
      raise NotFoundError(text) from error
  if args.json:
    print(json.dumps(dataclasses.asdict(report) | {"ok": report.ok}))
  else:
    print(describe(report))
    if not args.figure:
      hint("--figure contact_sheet.png draws some images of each class")
  if not report.ok:
    sys.exit(1)
