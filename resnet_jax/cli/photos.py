"""Code shared by the commands that run a trained network on images."""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resnet_jax.cli.options import MODEL_FLAGS, model_config
from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.config.preprocessing import check_fits
from resnet_jax.runtime.errors import UserError, flags_of_settings
from resnet_jax.runtime.terminal import printable

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.inference.classifier import Classifier

BATCH_SIZE = 32
ENGINES = "jax", "onnxruntime", "openvino"  # As in `inference/engines.py`.


def add_calibrated(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that uses a stored temperature or stored thresholds."""
  parser.add_argument(
    "--calibrated",
    action="store_true",
    help="divide the logits by the temperature, or take the thresholds of several "
    "classes, that --fit-temperature or --fit-thresholds of `resnet-jax evaluate` "
    "stored",
  )


def add_engine(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that chooses what computes the network."""
  parser.add_argument(
    "--engine",
    choices=ENGINES,
    default="jax",
    help="what computes the network: jax; or onnxruntime or openvino, on the CPU, "
    "after a comparison with JAX on the first batch (default: %(default)s)",
  )


def load_classifier(args: argparse.Namespace, dense: bool = False) -> "Classifier":
  """Loads the network and the preprocessing that the flags name.

  Args:
    args: the flags.
    dense: whether the command is also for networks that predict masks or boxes.

  Raises:
    UserError: the network or the preprocessing does not fit the command.
  """
  from resnet_jax.inference import loading
  from resnet_jax.inference.engines import check_engine
  from resnet_jax.runtime import compilation

  compilation.prepare_process()
  engine = getattr(args, "engine", "jax")
  check_engine(engine)
  calibrated = getattr(args, "calibrated", False)
  if args.workdir is not None:
    found = loading.load_run(args.workdir, args.checkpoint, args.trust_code, calibrated)
  else:
    with flags_of_settings(MODEL_FLAGS):
      found = loading.load_weights(
        args.weights, model_config(args), args.ema, calibrated
      )
  given: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name in ("resize", "crop", "mean", "std")
    if (value := getattr(args, name))
  }
  if found.labels in DENSE_LABELS:
    if not dense:
      raise UserError(
        f"this command is for networks that predict classes or numbers; this one has "
        f"config.data.labels={found.labels!r}"
      )
    if args.resize:
      raise UserError(
        f"--resize has no meaning for {found.labels!r}; --crop is the side of the "
        "squares into which images are scaled"
      )
    if args.crop:
      given["resize"] = args.crop
  preprocessing = dataclasses.replace(found.preprocessing, **given)
  check_fits(preprocessing, found.channels)
  if not preprocessing.crop:
    raise UserError(
      "these weights do not say how large their images are: give the short side and "
      "the square that is cut from it, such as --resize 32 --crop 32"
    )
  return dataclasses.replace(found, preprocessing=preprocessing, engine=engine)


def show_left_out(folder: str, number: int | None = None) -> None:
  """Prints to standard error which files of a folder are not read.

  Args:
    folder: the folder; its subfolders are included.
    number: number of its images that are read; None is all.
  """
  from resnet_jax.data.sources.file_list import (
    count_other_suffixes,
    describe_suffixes,
    files_below,
  )

  paths = files_below(Path(folder))
  others = count_other_suffixes(paths)
  left_out = describe_suffixes(others)
  images = len(paths) - others.total()
  if number is not None and images > number:
    left_out += (f"{images - number:,} images in other folders",)
  if left_out:
    print(printable(f"left out of {folder}: {', '.join(left_out)}"), file=sys.stderr)


class Meter:
  """A progress bar on standard error, and the speed after compilation."""

  def __init__(self, total: int, batch_size: int):
    from rich.progress import Progress

    console = Console(stderr=True)
    self.progress = Progress(
      console=console,
      transient=True,
      disable=not console.is_terminal,
      # If standard output is a file, Rich must not redirect it to the terminal.
      redirect_stdout=sys.stdout.isatty(),
    )
    self._task = self.progress.add_task("images", total=total)
    self._batch_size, self._start = batch_size, 0.0
    self._first = self._count = self._failed = 0

  def advance(self, count: int, errors: list[str]) -> None:
    """Counts processed images, and prints the errors of unreadable ones."""
    for error in errors:
      print(f"error: {printable(error)}", file=sys.stderr)
    self._count += count
    self._failed += len(errors)
    # The first batch does not count for the speed, as it includes compilation.
    if not self._start and self._count + self._failed >= self._batch_size:
      self._start, self._first = time.monotonic(), self._count + self._failed
    self.progress.advance(self._task, count + len(errors))

  def finish(self) -> None:
    """Prints number and speed; exits with status 1 if an image was unreadable."""
    text = f"{self._count:,} image{'s' * (self._count != 1)}"
    rest = self._count + self._failed - self._first
    if self._start and rest:
      rate = rest / (time.monotonic() - self._start)
      text += f", {rate:.1f} images/s after the first {self._first}"
    if self._failed:
      text += f"; {self._failed:,} could not be read"
    print(text, file=sys.stderr)
    if self._failed:
      sys.exit(1)


def check_figure(path: str | None) -> None:
  """Raises `UserError` if `path` is no .png file that can be written."""
  if path is None:
    return
  folder = os.path.dirname(os.path.abspath(path))
  if not path.endswith(".png") or not os.path.isdir(folder) or os.path.isdir(path):
    raise UserError(f"--figure {path!r} must be a .png file in an existing folder")
