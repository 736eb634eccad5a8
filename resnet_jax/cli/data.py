"""`resnet-jax data`: checks a data set, and prepares well-known ones."""

import argparse
import dataclasses
import json
import shlex
import signal
import sys
import textwrap
from typing import TYPE_CHECKING, Any

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
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:
  from rich.progress import Progress

TEXT = "Check a data set before training on it, or prepare a well-known one."
EXAMPLES = (
  "resnet-jax data check PHOTOS",
  "resnet-jax data prepare cifar10 --from cifar-10-python.tar.gz",
)
_CHECK_EXAMPLES = (
  EXAMPLES[0],
  "resnet-jax data check PHOTOS --figure contact_sheet.png",
  "resnet-jax data check cifar10 --data-dir DIR --json",
)
_PREPARE_EXAMPLES = (
  EXAMPLES[1],
  "resnet-jax data prepare svhn --from train_32x32.mat test_32x32.mat --out DIR",
  "resnet-jax data prepare imagenet --from FOLDER_OF_ARCHIVES",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  commands = parser.add_subparsers(
    required=True, metavar="COMMAND", help="what to do with the data set"
  )
  _add_check(commands)
  _add_prepare(commands)


def _add_check(commands: Any) -> None:
  text = (
    "Read every image of every split, and report the classes, the sizes, the "
    "unreadable images, and the images that are equal or look the same. "
    "The exit status is 1 if training cannot use an image or a file is in two splits."
  )
  check = commands.add_parser(
    "check",
    help=text.split(". ")[0],
    description=textwrap.fill(text, 80),
    epilog=list_examples(_CHECK_EXAMPLES),
  )
  check.set_defaults(parser=check, run=_check)
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
  add_number(
    check,
    "--channels",
    "number of channels that training expects, as config.data.channels (default: "
    f"{DataConfig().channels})",
  )
  add_number(
    check,
    "--max-value",
    "value that counts as 1, as config.data.max_value (default: the highest one of the "
    "file's type)",
  )
  check.add_argument(
    "--labels",
    choices=("class", "classes", "numbers"),
    default="class",
    help="what the label of an image is: one class, several classes or numbers "
    "(default: %(default)s)",
  )
  for what, suffix in (("image", "jpg"), ("label", "cls")):
    check.add_argument(
      f"--{what}-column",
      metavar="NAME",
      default="",
      help=f"column of the {what}s in parquet files, or the suffix of these files in "
      f"tar files, such as {suffix} (default: the usual names)",
    )
  figure = check.add_argument(
    "--figure",
    metavar="FILE.png",
    default="",
    help="draw some training images of each class into this file (default: none)",
  )
  add_former_names(check, figure, "--picture")
  add_json(check)


def _add_prepare(commands: Any) -> None:
  text = (
    "Turn the published files of a well-known data set into a folder of parquet files "
    "that trains. The files are compared with their published SHA-256 sums. The folder "
    "also works with Hugging Face's `load_dataset`."
  )
  prepare = commands.add_parser(
    "prepare",
    help=text.split(". ")[0],
    description=textwrap.fill(text, 80),
    epilog=list_examples(_PREPARE_EXAMPLES),
  )
  prepare.set_defaults(parser=prepare, run=_prepare)
  prepare.add_argument(
    "name",
    metavar="NAME",
    help="cifar10, cifar100, mnist, fashion_mnist, svhn, stl10, tiny_imagenet or "
    "imagenet",
  )
  prepare.add_argument(
    "--from",
    dest="sources",
    nargs="+",
    required=True,
    metavar="FILE",
    help="published files of the data set, not unpacked, or the folder that holds them",
  )
  prepare.add_argument(
    "--out",
    metavar="DIR",
    default="",
    help="new or empty folder for the data set (default: NAME)",
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  args.run(args)


def _prepare(args: argparse.Namespace) -> None:
  from resnet_jax.data.archives.known_sets import KNOWN_SETS
  from resnet_jax.data.archives.prepare import prepare

  # SIGTERM, as a scheduler sends it, must leave nothing half-written either.
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    done = prepare(args.name, args.sources, args.out, _progress())
  finally:
    signal.signal(signal.SIGTERM, before)
  if done.left_out:
    show(f"left out: {done.left_out}")
  if done.unchecked:
    show(f"not checked, as no sum is published: {', '.join(done.unchecked)}")
  parts = ", ".join(f"{split} {count:,}" for split, count in done.counts.items())
  show(
    f"{sum(done.counts.values()):,} images ({parts}) of {done.num_classes} classes -> "
    f"{done.folder}"
  )
  if "train" in done.counts:
    flags = KNOWN_SETS[args.name].train
    folder = shlex.quote(done.folder)
    show(f"train: resnet-jax train {flags} --config.data.dir={folder} --workdir=RUN")


def _progress() -> "Progress":
  from rich.progress import Progress

  console = Console(stderr=True)
  return Progress(console=console, transient=True, disable=not console.is_terminal)


def _check(args: argparse.Namespace) -> None:
  from resnet_jax.config.validation import validate
  from resnet_jax.data.audit import scan
  from resnet_jax.data.audit.report import describe

  config = data_config(args.source, args.data_dir)
  config.val_share, config.labels = args.val_share, args.labels
  config.max_pixels = args.max_pixels or config.max_pixels
  config.channels = args.channels or config.channels
  config.max_value = args.max_value or config.max_value
  config.image_column, config.label_column = args.image_column, args.label_column
  names = {
    "data.name": "SOURCE",
    "data.dir": "SOURCE" if config.name in KINDS_OF_FILES else "--data-dir",
    "data.val_share": "--val-share",
    "data.channels": "--channels",
    "data.max_value": "--max-value",
    "data.max_pixels": "--max-pixels",
    "data.image_column": "--image-column",
    "data.label_column": "--label-column",
  }
  with flags_of_settings(names):
    validate(Config(data=config))
    try:
      report = scan.scan(config, args.figure, _progress())
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
