"""`resnet-jax evaluate`: how good a run or a file of weights is."""

import argparse
import json

from resnet_jax.cli.options import (
  add_number,
  add_trained,
  check_source,
  model_config,
)
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.runtime.errors import UserError, flags_of_settings
from resnet_jax.runtime.terminal import show

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

TEXT = "Evaluate a run or weights on a data set."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  add_trained(parser)
  add_number(parser, "--batch-size", "images at once")
  parser.add_argument("--dataset", help="folder, digits, a TFDS set such as cifar10")
  parser.add_argument("--data-dir", metavar="DIR", help="the folder, or that of TFDS")
  parser.add_argument("--split", help="such as test or validation[:1000]")
  parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax import weights
  from resnet_jax.config.preprocessing import with_preprocessing
  from resnet_jax.models.registry import create_model
  from resnet_jax.runs import run_dir
  from resnet_jax.runtime import compilation
  from resnet_jax.training import evaluator
  from resnet_jax.training.resolved_config import check_settings

  compilation.keep_freed_memory()
  check_source(args)
  if args.workdir is not None:
    config = run_dir.load_run_config(args.workdir, args.trust_code, evaluator.USED)
    config.kernels = "auto"  # As suits this machine, not the one that trained.
  elif args.dataset:
    model_settings = weights.complete_model(args.weights, model_config(args))
    config = Config(model=model_settings, data=DataConfig())
    check_settings(config)
    model = create_model(model_settings.name, stem=model_settings.stem)
    preprocessing = weights.read_preprocessing(args.weights, model)
    config.data = with_preprocessing(config.data, preprocessing)
  else:
    raise UserError("--weights needs --dataset, the images to evaluate on")
  _apply(config, args)
  flags = {f"data.{name}": f"--{flag}" for flag, name in _DATA_FLAGS.items()}
  # Without --split, all of a folder without splits is evaluated.
  flags |= {"batch_size": "--batch-size", "data.val_share": "--split"}
  with flags_of_settings(flags):
    if args.workdir is not None:
      _, results = evaluator.evaluate_run(
        config, args.workdir, args.checkpoint, trust_code=args.trust_code
      )
    else:
      results = evaluator.evaluate_weights(config, args.weights)
  if args.json:
    results = {name: results[name] for name in results if name != "images_per_s"}
    print(json.dumps(results))
  else:
    show(evaluator.describe(results))


def _apply(config: Config, args: argparse.Namespace) -> None:
  """Puts the flags that were given into the settings."""
  if args.dataset is not None:
    # The run's own images and split are no part of another set.
    config.data.factory = config.data.eval_split = ""
  for flag, name in _DATA_FLAGS.items():
    value = getattr(args, flag.replace("-", "_"))
    if value is not None:
      setattr(config.data, name, tuple(value) if isinstance(value, list) else value)
  if args.batch_size:
    config.batch_size = args.batch_size
