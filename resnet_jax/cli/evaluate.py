"""`resnet-jax evaluate`: evaluates a run or a file of weights."""

import argparse
import json

from resnet_jax.cli.options import (
  MODEL_FLAGS,
  SOURCE,
  add_data_dir,
  add_json,
  add_number,
  add_trained,
  check_source,
  data_config,
  model_config,
)
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.runtime.errors import UserError, flags_of_settings
from resnet_jax.runtime.terminal import show

_NAMES = "digits", "synthetic", "folder"  # Never paths, even if such files exist.
# The flags of the data, and the settings that they change.
_DATA_FLAGS = {
  "dataset": "name",
  "data-dir": "dir",
  "split": "eval_split",
  "resize": "eval_resize",
  "crop": "eval_crop",
  "mean": "mean",
  "std": "std",
}

TEXT = "Evaluate a run or a file of weights on a data set."
EXAMPLES = (
  "resnet-jax evaluate --workdir RUN",
  "resnet-jax evaluate --workdir RUN --checkpoint best --split train",
  "resnet-jax evaluate --weights FILE --model resnet20 --dataset PHOTOS",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  add_trained(parser)
  add_number(
    parser,
    "--batch-size",
    "number of images per step, > 0 (default: the run's, or "
    f"{Config().batch_size} for --weights)",
  )
  parser.add_argument(
    "--dataset",
    metavar="SOURCE",
    help=f"{SOURCE}, or digits (default: the data set of the run)",
  )
  add_data_dir(parser)
  parser.add_argument(
    "--split",
    help="split to evaluate, such as test or validation[:1000] (default: the "
    "run's; with --dataset, validation or test)",
  )
  add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.runtime import compilation
  from resnet_jax.training import evaluator

  compilation.keep_freed_memory()
  check_source(args)
  flags = {f"data.{name}": f"--{flag}" for flag, name in _DATA_FLAGS.items()}
  # `val_share` counts only if --split or the run names a split. Otherwise all images of
  # a folder without splits are evaluated.
  flags |= {"batch_size": "--batch-size", "data.val_share": "--split"}
  if args.workdir is None:
    flags |= MODEL_FLAGS
  if args.dataset not in (None, *_NAMES):
    named = data_config(args.dataset, args.data_dir)
    if named.name == "folder":
      flags["data.dir"] = "--dataset"
    args.dataset, args.data_dir = named.name, named.dir
  with flags_of_settings(flags):
    step, results = _evaluate(args)
  if args.json:
    results = {name: results[name] for name in results if name != "images_per_s"}
    print(json.dumps(results))
  else:
    place = "" if step is None else f"step {step}: "
    show(f"{place}{evaluator.describe(results)}")


def _evaluate(args: argparse.Namespace) -> tuple[int | None, dict[str, float]]:
  """Returns (step of the evaluated run, or None for weights; metrics)."""
  from resnet_jax import weights
  from resnet_jax.config.preprocessing import with_preprocessing
  from resnet_jax.models.registry import create_model
  from resnet_jax.runs import run_dir
  from resnet_jax.training import evaluator
  from resnet_jax.training.resolved_config import check_settings

  if args.workdir is not None:
    config = run_dir.load_run_config(args.workdir, args.trust_code, evaluator.USED)
    config.kernels = "auto"  # For this machine, not the one that trained.
    _apply(config, args)
    return evaluator.evaluate_run(
      config, args.workdir, args.checkpoint, trust_code=args.trust_code
    )
  if not args.dataset:
    raise UserError("--weights needs --dataset, the images to evaluate on")
  new_head = weights.needs_new_head(args.weights, args.num_classes or 0, args.ema)
  config = Config(
    model=weights.complete_model(args.weights, model_config(args), args.ema),
    data=DataConfig(),
  )
  check_settings(config)
  model = create_model(config.model.name, stem=config.model.stem)
  preprocessing = weights.read_preprocessing(args.weights, model)
  config.data = with_preprocessing(config.data, preprocessing)
  _apply(config, args)
  return None, evaluator.evaluate_weights(
    config, args.weights, ema=args.ema, new_head=new_head
  )


def _apply(config: Config, args: argparse.Namespace) -> None:
  """Copies the given flags into the settings."""
  if args.dataset is not None:
    # Another data set has neither the run's own images nor its split.
    config.data.factory = config.data.eval_split = ""
  for flag, name in _DATA_FLAGS.items():
    value = getattr(args, flag.replace("-", "_"))
    if value is not None:
      setattr(config.data, name, tuple(value) if isinstance(value, list) else value)
  if args.batch_size:
    config.batch_size = args.batch_size
