"""`resnet-jax`: what one does with a network next to training it."""

import argparse
import dataclasses
import json
import os
import sys
from typing import NoReturn

from absl import logging
from rich.console import Console
from rich.table import Table

from resnet_jax.cli import dryrun, study, sweep, use
from resnet_jax.cli.options import (
  add_checkpoint,
  add_model_options,
  add_number,
  add_trained,
  check_source,
  in_flags,
  model_config,
)
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.runtime import errors
from resnet_jax.training import experiment


def main(argv: list[str] | None = None) -> None:
  """Runs the command line `argv`, or the process's own.

  Exit status: 0 done, 1 it failed, 2 wrong usage.
  """
  parser = _parser()
  args, rest = parser.parse_known_args(argv)
  takes_settings = dryrun.run, study.run, sweep.run
  if rest and args.run not in takes_settings:
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  args.settings = rest
  logging.set_verbosity(logging.FATAL)  # What is raised is shown once.
  with errors.clean_errors():
    args.run(args)


class _Parser(argparse.ArgumentParser):
  def __init__(self, **kwargs):
    super().__init__(allow_abbrev=False, **kwargs)

  def error(self, message: str) -> NoReturn:
    errors.fail(2, f"{message}; {self.prog} --help says more")


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog="resnet-jax", description=__doc__)
  commands = parser.add_subparsers(required=True, metavar="COMMAND")

  def add(name: str, run, text: str, group=commands) -> argparse.ArgumentParser:
    command = group.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command

  summary = add("summary", _summary, "Print layers, sizes, parameters, multiply-adds.")
  summary.add_argument("model", metavar="MODEL", help="such as resnet50")
  add_number(summary, "--image-size", "224, or 32 for CIFAR's nets, if not given")
  add_model_options(summary)
  summary.add_argument("--json", action="store_true", help="print one JSON object")

  convert = add("convert", _convert, "Convert weights from a run or to one.")
  convert.add_argument(
    "source", metavar="SRC", help="run, weight file, hf://owner/name"
  )
  convert.add_argument("target", metavar="DST", help="FILE.safetensors or a new run")
  convert.add_argument("--model", help="architecture of a SRC that is no run")
  add_model_options(convert)
  add_checkpoint(convert)

  evaluate = add("evaluate", _evaluate, "Evaluate a run or weights on a data set.")
  add_trained(evaluate)
  add_number(evaluate, "--batch-size", "images at once")
  evaluate.add_argument("--dataset", help="folder, digits, a TFDS set such as cifar10")
  evaluate.add_argument("--data-dir", metavar="DIR", help="the folder, or that of TFDS")
  evaluate.add_argument("--split", help="such as test or validation[:1000]")
  evaluate.add_argument("--json", action="store_true", help="print one JSON object")

  use.add_commands(add)

  hashing = add("hash", _hash, "Print a hash of a run's parameters and statistics.")
  hashing.add_argument("workdir", metavar="RUN", help="the directory of a run")
  add_checkpoint(hashing)
  hashing.add_argument("--json", action="store_true", help="print one JSON object")

  rehearsal = add("dryrun", dryrun.run, dryrun.TEXT)
  dryrun.add_arguments(rehearsal)
  add_number(rehearsal, "--images-per-chip", "batch size, if not the config's")

  study.add_arguments(add("study", study.run, study.TEXT))
  sweep.add_arguments(add("sweep", sweep.run, sweep.TEXT))

  data = add("data", None, "Look at a data set before training on it.")
  data_commands = data.add_subparsers(required=True, metavar="COMMAND")
  text = (
    "Read every image of every split: what is there, what cannot be read, what is "
    "there twice. Exit status: 0 if all can be read and no file is in two splits, "
    "else 1; 2 wrong usage."
  )
  check = add("check", _data_check, text, data_commands)
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
  return parser


def _summary(args: argparse.Namespace) -> None:
  from resnet_jax.models.registry import create_model
  from resnet_jax.models.stems import CifarStem
  from resnet_jax.models.summary import list_layers

  model = create_model(
    args.model, args.num_classes, stem=args.stem, shortcut=args.shortcut
  )
  size = args.image_size or (32 if model.stem is CifarStem else 224)
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
  console = Console()
  console.print(table)
  console.print(
    f"{args.model}, {model.num_classes} classes, one image of {size} x {size} x 3\n"
    f"parameters:     {params:,} ({4 * params / 2**20:.1f} MiB in float32)\n"
    f"multiply-adds:  {totals['multiply_adds'] / 1e9:.2f} G\n"
    f"activations:    {totals['activation_bytes'] / 2**20:.1f} MiB in float32, the "
    "outputs of the layers above",
    highlight=False,
  )


def _convert(args: argparse.Namespace) -> None:
  from resnet_jax.inference.convert import convert

  if args.model is None and (args.num_classes or args.stem or args.shortcut):
    raise ValueError("--num-classes, --stem and --shortcut need --model")
  model = None if args.model is None else model_config(args)
  print(convert(args.source, args.target, model, args.checkpoint))


def _evaluate(args: argparse.Namespace) -> None:
  from resnet_jax import weights
  from resnet_jax.inference.convert import with_preprocessing
  from resnet_jax.models.registry import create_model
  from resnet_jax.runs import run_dir
  from resnet_jax.runtime import compilation
  from resnet_jax.training import evaluator

  compilation.keep_freed_memory()
  check_source(args)
  if args.workdir is not None:
    config = run_dir.load_run_config(args.workdir)
  elif args.dataset:
    config = Config(model=model_config(args), data=DataConfig())
    experiment.check(config)
    model = create_model(args.model, stem=args.stem)
    preprocessing = weights.read_preprocessing(args.weights, model)
    config.data = with_preprocessing(config.data, preprocessing)
  else:
    raise ValueError("--weights needs --dataset, the images to evaluate on")
  _apply(config, args)
  flags = {f"data.{name}": f"--{flag}" for flag, name in _DATA_FLAGS.items()}
  with in_flags(flags | {"batch_size": "--batch-size"}):
    if args.workdir is not None:
      _, results = evaluator.evaluate_run(config, args.workdir, args.checkpoint)
    else:
      results = evaluator.evaluate_weights(config, args.weights)
  if args.json:
    results = {name: results[name] for name in results if name != "images_per_s"}
    print(json.dumps(results))
  else:
    print(evaluator.describe(results))


def _hash(args: argparse.Namespace) -> None:
  from resnet_jax.runs import run_dir
  from resnet_jax.runs.checkpoint import CheckpointStore
  from resnet_jax.runs.checksums import digest_arrays

  run_dir.load_run_config(args.workdir)
  with CheckpointStore(args.workdir) as store:
    step, variables = store.restore_model(args.checkpoint)
  result = {"step": step, "hash": digest_arrays(variables)}
  print(json.dumps(result) if args.json else f"step {step}: {result['hash']}")


# The settings that these flags stand for.
_DATA_FLAGS = {
  "dataset": "name",
  "data-dir": "dir",
  "split": "eval_split",
  "resize": "eval_resize",
  "crop": "eval_crop",
  "mean": "mean",
  "std": "std",
}


def _apply(config: Config, args: argparse.Namespace) -> None:
  """Puts the flags that were given into the settings."""
  if args.dataset is not None:
    config.data.eval_split = ""  # The run's may be no split of another set.
  for flag, name in _DATA_FLAGS.items():
    value = getattr(args, flag.replace("-", "_"))
    if value is not None:
      setattr(config.data, name, tuple(value) if isinstance(value, list) else value)
  if args.batch_size:
    config.batch_size = args.batch_size


def _data_check(args: argparse.Namespace) -> None:
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
  with in_flags(names):
    validate(Config(data=config))
    try:
      report = scan.scan(config, args.picture, progress)
    except FileNotFoundError as error:
      if args.data_dir is None:
        error.args = (f"there is no folder or .csv file {args.source!r}, and {error}",)
      raise
  if args.json:
    print(json.dumps(dataclasses.asdict(report) | {"ok": report.ok}))
  else:
    print(describe(report))
  if not report.ok:
    sys.exit(1)
