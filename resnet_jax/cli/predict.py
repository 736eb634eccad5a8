"""`resnet-jax predict`: predicts classes, numbers, masks or boxes of images."""

import argparse
import json
import math
import os
from typing import TYPE_CHECKING, Any

from resnet_jax.cli.kinds import check_predict
from resnet_jax.cli.options import add_number, add_trained, check_source
from resnet_jax.cli.photos import (
  BATCH_SIZE,
  Meter,
  add_calibrated,
  add_engine,
  check_figure,
  load_classifier,
  show_left_out,
)
from resnet_jax.cli.predict_places import predict_places
from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.inference.image_grid import Picture
  from resnet_jax.inference.predict import Prediction

_MAX_PICTURES = 64

TEXT = (
  "Print what a network predicts for images: the most probable classes, numbers, the "
  "classes of the pixels, or objects with their boxes. The exit status is 1 if an "
  "image cannot be read."
)
EXAMPLES = (
  "resnet-jax predict PHOTO --workdir RUN",
  "resnet-jax predict PHOTOS --workdir RUN --figure answers.png --explain",
  "resnet-jax predict PHOTOS --workdir RUN --out FOLDER  # masks or boxes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
    "images",
    nargs="+",
    metavar="IMAGE_OR_DIR",
    help="image file, or folder whose images are all taken",
  )
  add_trained(parser)
  add_calibrated(parser)
  add_engine(parser)
  add_number(
    parser,
    "--batch-size",
    f"number of images per step (default: {BATCH_SIZE}; 8 for masks and boxes)",
  )
  add_number(parser, "--top", "number of classes shown for each image (default: 5)")
  parser.add_argument(
    "--json",
    action="store_true",
    help="print one JSON object per image, each on a line, instead of text",
  )
  parser.add_argument(
    "--figure",
    metavar="FILE.png",
    help=f"draw the first {_MAX_PICTURES} images with their classes into this file; "
    "green is right and red is wrong, where an image's folder has the name of a class "
    "(default: none)",
  )
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="for masks and boxes: write DIR/pictures/, the images with what was found "
    "drawn on them; and for masks DIR/masks/, PNG files with the class of each pixel "
    "(default: none)",
  )
  parser.add_argument(
    "--explain",
    action="store_true",
    help="show beside each image in --figure which parts support its most probable "
    "class (Grad-CAM)",
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.data.pipelines.single_pass import find_images
  from resnet_jax.inference.image_grid import draw_grid
  from resnet_jax.inference.predict import predict

  check_source(args)
  check_figure(args.figure)
  if args.explain and args.figure is None:
    raise UserError("--explain draws into --figure FILE.png; name it too")
  files = find_images(args.images)
  for folder in filter(os.path.isdir, args.images):
    show_left_out(folder)
  classifier = load_classifier(args, dense=True)
  check_predict(args, classifier.labels)
  if classifier.labels in DENSE_LABELS:
    predict_places(args, classifier, files)
    return
  names, pictures = classifier.class_names, []
  folders = _classes_of_folders(names)
  batch_size = args.batch_size or BATCH_SIZE
  meter = Meter(len(files), batch_size)
  # Set when the reader of the output, such as `| head`, has ended.
  closed: BrokenPipeError | None = None
  with meter.progress:
    for found in predict(
      classifier,
      files,
      top=args.top or 5,
      batch_size=batch_size,
      num_pictures=_MAX_PICTURES if args.figure else 0,
    ):
      lines = [
        f"{names[label]} {100 * probability:.1f} %"
        for label, probability in zip(found.classes, found.probabilities, strict=True)
      ]
      if found.values:
        pairs = zip(names, found.values, strict=True)
        lines = [f"{name} {value:.6g}" for name, value in pairs]
      if found.image is not None:
        pictures.append(_picture(found, names, folders, args.explain))
      errors = [f"{found.file}: {found.error}"] if found.error else []
      meter.advance(not errors, errors)
      try:
        if closed is None and args.json:
          print(json.dumps(_as_dict(found, names)))
        elif closed is None and not errors:
          show(f"{found.file}: {'; '.join(lines) or 'no class'}")
      except BrokenPipeError as error:
        closed = error
      if closed and (args.figure is None or len(pictures) == _MAX_PICTURES):
        break
  if pictures:
    most = 3 if args.explain else 6
    draw_grid(args.figure, pictures, min(most, math.ceil(math.sqrt(len(pictures)))))
  if closed:
    raise closed
  meter.finish()


def _classes_of_folders(names: tuple[str, ...]) -> dict[str, int]:
  """Returns {folder name: class}.

  The folder of a class has the name of the class or, for ImageNet, its WordNet id.
  """
  from resnet_jax.weights import imagenet

  ids = imagenet.synsets() if imagenet.are_classes(names) else ()
  return {name: i for known in (ids, names) for i, name in enumerate(known)}


def _picture(
  found: "Prediction", names: tuple[str, ...], folders: dict[str, int], explain: bool
) -> "Picture":
  from resnet_jax.inference.image_grid import Picture
  from resnet_jax.runtime.figure_style import RIGHT, WRONG

  assert found.image is not None
  lines, color = [os.path.basename(found.file)], ""
  if found.values:
    pairs = zip(names, found.values, strict=True)
    lines += [f"{name}: {value:.4g}" for name, value in pairs][:3]
  if not found.classes:
    second, title = _explained(found, "Grad-CAM") if explain else (None, "")
    return Picture(found.image, lines, second=second, second_title=title)
  first = found.classes[0]
  truth = folders.get(os.path.basename(os.path.dirname(os.path.abspath(found.file))))
  if truth is not None:
    color = RIGHT if truth == first else WRONG
    lines.append(f"✓ {names[truth]}" if truth == first else f"✗ it is {names[truth]}")
  top = [names[label] for label in found.classes[:3]]
  bars = list(zip(top, found.probabilities[:3], strict=True))
  if not explain:
    return Picture(found.image, lines, color, bars)
  title = f"Grad-CAM: {names[first]}"
  return Picture(found.image, lines, color, bars, *_explained(found, title))


def _explained(found: "Prediction", title: str) -> tuple[Any, str]:
  """Returns the image under its map, and the caption; a custom network has no map."""
  from resnet_jax.inference.grad_cam import overlay
  from resnet_jax.inference.image_grid import as_rgb

  if found.image is None or found.heat is None:
    return None, ""
  rgb = as_rgb(found.image)
  shown = overlay(rgb, found.heat)
  return (rgb, "no map") if shown is None else (shown, title)


def _as_dict(found: "Prediction", names: tuple[str, ...]) -> dict[str, Any]:
  if found.error:
    return {"file": found.file, "error": found.error}
  if found.values:
    return {"file": found.file, "values": dict(zip(names, found.values, strict=True))}
  pairs = zip(found.classes, found.probabilities, strict=True)
  labels = [{"class": i, "label": names[i], "probability": p} for i, p in pairs]
  return {"file": found.file, "labels": labels}
