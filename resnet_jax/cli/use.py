"""`resnet-jax predict`, `features`, `export`: what one does with a trained network."""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resnet_jax.cli.options import (
  add_number,
  add_trained,
  check_source,
  in_flags,
  model_config,
)
from resnet_jax.config.preprocessing import check_channels
from resnet_jax.config.schema import DataConfig

if TYPE_CHECKING:  # JAX takes seconds, which `--help` need not wait for.
  from resnet_jax.data import ImageSource
  from resnet_jax.data.sources.base import Source
  from resnet_jax.inference.classifier import Trained
  from resnet_jax.inference.predict import Prediction

_BATCH_SIZE = 32
_MAX_PICTURES = 64


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the commands by `add(name, run, text)`."""
  text = "Print the classes of images. Exit status 1 if one cannot be read."
  predict = add("predict", _predict, text)
  predict.add_argument("images", nargs="+", metavar="IMAGE_OR_DIR")
  add_trained(predict)
  add_number(predict, "--batch-size", f"images at once ({_BATCH_SIZE})")
  add_number(predict, "--top", "classes of each image (5)")
  predict.add_argument(
    "--json", action="store_true", help="print one JSON object a line for each image"
  )
  predict.add_argument(
    "--figure",
    metavar="OUT.png",
    help=f"draw the first {_MAX_PICTURES} images with their classes",
  )
  predict.add_argument(
    "--explain",
    action="store_true",
    help="lay over them where the first class is seen (Grad-CAM)",
  )

  text = (
    "Write what the network sees in images, as .npz: features, files, labels, "
    "class_names. Exit status 1 if an image cannot be read."
  )
  features = add("features", _features, text)
  features.add_argument("source", metavar="SOURCE", help="folder, .csv or a TFDS set")
  features.add_argument("target", metavar="OUT.npz")
  add_trained(features)
  add_number(features, "--batch-size", f"images at once ({_BATCH_SIZE})")
  features.add_argument("--data-dir", metavar="DIR", help="of TFDS; SOURCE is in it")
  features.add_argument(
    "--split", default="", help="if not all of a folder, or a set's for evaluation"
  )
  features.add_argument(
    "--layer", default="pooled", help="pooled, what the head sees, or a map: c2 to c5"
  )
  features.add_argument(
    "--figure", metavar="OUT.png", help="draw some images with their nearest ones"
  )

  text = (
    "Write a network as one file that runs without this package: uint8 images in, "
    "probabilities out, any batch size. It is read again and compared."
  )
  export = add("export", _export, text)
  export.add_argument("target", metavar="OUT")
  export.add_argument(
    "--format",
    required=True,
    choices=["stablehlo", "onnx"],
    help="for jax.export.deserialize on CPU, CUDA and TPU; or for ONNX Runtime",
  )
  export.add_argument(
    "--image-size",
    type=_size,
    metavar="HxW",
    help="of the images it is given, if they are not yet resized and cropped",
  )
  add_trained(export)


def _size(text: str) -> tuple[int, int]:
  sides = text.split("x")
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH, such as 480x640")
  return int(sides[0]), int(sides[1])


def _load(args: argparse.Namespace) -> "Trained":
  """Loads the network that the flags name, with the preprocessing that they change."""
  from resnet_jax.inference import classifier
  from resnet_jax.runtime import compilation

  compilation.keep_freed_memory()
  if args.workdir is not None:
    found = classifier.load_run(args.workdir, args.checkpoint)
  else:
    found = classifier.load_weights(args.weights, model_config(args))
  given: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name in ("resize", "crop", "mean", "std")
    if (value := getattr(args, name))
  }
  preprocessing = dataclasses.replace(found.preprocessing, **given)
  if not preprocessing.crop:
    raise ValueError(
      "these weights do not say how large their images are: give the short side and "
      "the square that is cut from it, such as --resize 32 --crop 32"
    )
  channels = found.channels
  for name in ("mean", "std"):
    values = getattr(preprocessing, name)
    check_channels(f"--{name} {' '.join(map(str, values))}", values, channels)
  if channels not in (1, 3):
    raise ValueError(f"the network takes {channels} channels, image files have 1 or 3")
  return dataclasses.replace(found, preprocessing=preprocessing)


class _Meter:
  """A progress bar on standard error, and the speed once all is compiled."""

  def __init__(self, total: int, batch_size: int):
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    self.progress = Progress(
      console=console,
      transient=True,
      disable=not console.is_terminal,
      # It would send to the terminal what is meant for a file.
      redirect_stdout=sys.stdout.isatty(),
    )
    self._task = self.progress.add_task("images", total=total)
    self._batch_size, self._start = batch_size, 0.0
    self._first = self._count = self._failed = 0

  def advance(self, count: int, errors: list[str]) -> None:
    """Counts images that were done, and names those that could not be read."""
    for error in errors:
      print(f"error: {_printable(error)}", file=sys.stderr)
    self._count += count
    self._failed += len(errors)
    # Before the end of the first batch, what is compiled is waited for too.
    if not self._start and self._count + self._failed >= self._batch_size:
      self._start, self._first = time.monotonic(), self._count + self._failed
    self.progress.advance(self._task, count + len(errors))

  def finish(self) -> None:
    """Says how many and how fast; exits with status 1 if any could not be read."""
    text = f"{self._count:,} images"
    rest = self._count + self._failed - self._first
    if self._start and rest:
      rate = rest / (time.monotonic() - self._start)
      text += f", {rate:.1f} images/s after the first {self._first}"
    if self._failed:
      text += f"; {self._failed:,} could not be read"
    print(text, file=sys.stderr)
    if self._failed:
      sys.exit(1)


def _printable(text: str) -> str:
  from resnet_jax.data.audit.report import printable

  return printable(text)


def _check_figure(path: str | None) -> None:
  if path is None:
    return
  folder = os.path.dirname(os.path.abspath(path))
  if not path.endswith(".png") or not os.path.isdir(folder) or os.path.isdir(path):
    raise ValueError(f"--figure {path!r} must be a .png file in a folder that is there")


def _predict(args: argparse.Namespace) -> None:
  from resnet_jax.data.pipelines.single_pass import find_images
  from resnet_jax.inference.image_grid import Picture, draw_grid
  from resnet_jax.inference.predict import predict

  check_source(args)
  _check_figure(args.figure)
  if args.explain and args.figure is None:
    raise ValueError("--explain draws into --figure OUT.png; name it too")
  files = find_images(args.images)
  trained = _load(args)
  names, pictures = trained.class_names, []
  batch_size = args.batch_size or _BATCH_SIZE
  meter = _Meter(len(files), batch_size)
  with meter.progress:
    for found in predict(
      trained,
      files,
      top=args.top or 5,
      batch_size=batch_size,
      num_pictures=_MAX_PICTURES if args.figure else 0,
    ):
      if found.error:
        meter.advance(0, [f"{found.file}: {found.error}"])
      if args.json:
        print(json.dumps(_as_dict(found, names)))
      if found.error:
        continue
      lines = [
        f"{names[label]} {100 * probability:.1f} %"
        for label, probability in zip(found.classes, found.probabilities, strict=True)
      ]
      if not args.json:
        print(_printable(f"{found.file}: {'; '.join(lines)}"))
      if found.image is not None:
        heat = found.heat if args.explain else None
        name = os.path.basename(found.file)
        pictures.append(Picture(found.image, [name, *lines[:3]], heat))
      meter.advance(1, [])
  if pictures:
    draw_grid(args.figure, pictures, columns=8)
  meter.finish()


def _as_dict(found: "Prediction", names: tuple[str, ...]) -> dict:
  if found.error:
    return {"file": found.file, "error": found.error}
  pairs = zip(found.classes, found.probabilities, strict=True)
  labels = [{"class": i, "label": names[i], "probability": p} for i, p in pairs]
  return {"file": found.file, "labels": labels}


def _features(args: argparse.Namespace) -> None:
  from resnet_jax.inference import embed

  check_source(args)
  _check_figure(args.figure)
  names = {"data.name": "SOURCE", "data.dir": "SOURCE"}
  names |= {"data.eval_crop": "--crop", "data.eval_resize": "--resize"}
  if args.data_dir is not None:
    names["data.dir"] = "--data-dir"
  with in_flags(names):
    source = _open_source(args)
    trained = _load(args)
    batch_size = args.batch_size or _BATCH_SIZE
    meter = _Meter(len(source), batch_size)
    with meter.progress:
      embed.extract(
        trained,
        source,
        args.target,
        layer=args.layer,
        batch_size=batch_size,
        figure=args.figure or "",
        advance=meter.advance,
      )
  meter.finish()


def _open_source(args: argparse.Namespace) -> "Source | ImageSource":
  from pathlib import Path

  from resnet_jax.data.sources.opening import open_source
  from resnet_jax.inference.embed import list_all

  path = Path(os.path.expanduser(args.source))
  if args.data_dir is not None or not path.exists():
    config = DataConfig(name=args.source, dir=args.data_dir or "")
  elif not args.split:
    return list_all(path, DataConfig().val_share)
  else:
    config = DataConfig(name="folder", dir=str(path))
  return open_source(config, args.split)


def _export(args: argparse.Namespace) -> None:
  from resnet_jax.inference.export import export

  folder = os.path.dirname(os.path.abspath(args.target))
  if not os.path.isdir(folder) or os.path.isdir(args.target):
    raise ValueError(f"OUT {args.target!r} must be a file in a folder that is there")
  check_source(args)
  trained = _load(args)
  difference = export(trained, args.target, args.format, args.image_size)
  height, width = args.image_size or (trained.preprocessing.crop,) * 2
  print(
    f"{trained.name} -> {args.target} ({os.path.getsize(args.target) / 1e6:.1f} MB)\n"
    f"images [batch, {height}, {width}, {trained.channels}] uint8 -> probabilities "
    f"[batch, {len(trained.class_names)}] float32\n"
    f"read again, probabilities differ by {difference:.1g} at most"
  )
