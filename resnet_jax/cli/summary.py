"""`resnet-jax summary`: prints the layers of a network."""

import argparse
import dataclasses
import json

from rich.console import Console
from rich.table import Table

from resnet_jax.cli.options import (
  MODEL_FLAGS,
  add_json,
  add_model_options,
  add_number,
)
from resnet_jax.runtime.errors import flags_of_settings
from resnet_jax.runtime.terminal import show

TEXT = "Print the layers of a network, their sizes, parameters and multiply-adds."
EXAMPLES = (
  "resnet-jax summary resnet50",
  "resnet-jax summary resnet20 --num-classes 100 --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
    "model",
    metavar="NAME",
    help="architecture, such as resnet50: `resnet-jax models` lists all",
  )
  add_number(
    parser,
    "--image-size",
    "side in pixels of the square images that the network gets (default: 32 for the "
    "stem cifar, and 224 for others)",
  )
  add_model_options(parser)
  add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.models.registry import create_model
  from resnet_jax.models.stems import CifarStem
  from resnet_jax.models.summary import list_layers

  with flags_of_settings(MODEL_FLAGS | {"model.name": "NAME"}):
    model = create_model(
      args.model, args.num_classes, stem=args.stem, shortcut=args.shortcut
    )
  size = args.image_size or (32 if model.stem_cls is CifarStem else 224)
  layers = list_layers(model, (size, size, 3))
  params = sum(layer.params for layer in layers)
  totals = {
    "model": args.model,
    "image_size": size,
    "num_classes": model.num_classes,
    "params": params,
    "multiply_adds": sum(layer.multiply_adds for layer in layers),
    "parameter_bytes": 4 * params,
    "activation_bytes": sum(layer.output_bytes for layer in layers),
  }
  if args.json:
    rows = [dataclasses.asdict(layer) for layer in layers]
    print(json.dumps(totals | {"layers": rows}))
    return
  table = Table("layer", "output shape")
  for name in ("parameters", "multiply-adds"):
    table.add_column(name, justify="right")
  for layer in layers:
    shape = " x ".join(map(str, layer.output_shape))
    counts = [f"{n:,}" if n else "" for n in (layer.params, layer.multiply_adds)]
    table.add_row(layer.name, shape, *counts)
  Console().print(table)
  show(
    f"{args.model}, {model.num_classes} classes, one image of {size} x {size} x 3",
    f"parameters:     {params:,} ({4 * params / 2**20:.1f} MiB in float32)",
    f"multiply-adds:  {totals['multiply_adds'] / 1e9:.2f} G",
    f"activations:    {totals['activation_bytes'] / 2**20:.1f} MiB in float32, the "
    "outputs of the layers above",
  )
