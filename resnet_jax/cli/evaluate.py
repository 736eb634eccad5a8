"""`resnet-jax evaluate`: evaluates a run or a file of weights."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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
from resnet_jax.cli.photos import add_calibrated
from resnet_jax.config.allowed import MAX_SIZE
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.runtime.errors import UserError, flags_of_settings
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.evaluation.answers import Answers
  from resnet_jax.training.evaluator import Prepared

_MAIN = {"top1", "top5", "loss", "count"}  # On the first line.
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
  "resnet-jax evaluate --workdir RUN --report FOLDER --crops 10",
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
  parser.add_argument(
    "--report",
    metavar="DIR",
    help="write a page with scores, pictures and tables into this folder (default: "
    "none)",
  )
  parser.add_argument(
    "--crops",
    type=int,
    choices=[1, 5, 10],
    default=1,
    help="1, 5 (the middle and the corners) or 10 (these and their mirror images): "
    "average the probabilities of so many crops of an image (default: %(default)s)",
  )
  parser.add_argument(
    "--scales",
    type=_pixels,
    default=(),
    metavar="A,B",
    help="average the probabilities over these sizes of the whole square, in pixels, "
    "such as 224,256,384,480,640 (default: the usual size)",
  )
  parser.add_argument(
    "--flip",
    action="store_true",
    help="average the probabilities of an image and its mirror image",
  )
  parser.add_argument(
    "--ensemble",
    nargs="+",
    default=[],
    metavar="RUN",
    help="further runs, or files of weights; the probabilities of all are averaged "
    "(default: none)",
  )
  parser.add_argument(
    "--fit-temperature",
    action="store_true",
    help="fit the temperature of the probabilities on --split, which must be neither "
    "the training images nor those of the evaluation, and store it with the run",
  )
  add_calibrated(parser)
  parser.add_argument(
    "--classes",
    metavar="FILE",
    help="let the network choose only among the classes that this file names, one on a "
    "line, or among those of the images: present (default: all)",
  )
  parser.add_argument(
    "--label-sets",
    metavar="FILE.json",
    help="take the labels from this file, which has one or several for each image, "
    "such as those of ReaL (default: the images' own)",
  )
  add_json(parser)


def _pixels(text: str) -> tuple[int, ...]:
  parts = text.split(",")
  if not all(part.isdecimal() and 0 < int(part) <= MAX_SIZE for part in parts):
    raise argparse.ArgumentTypeError(f"{text!r} must be pixels, such as 224,256,384")
  return tuple(map(int, parts))


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.evaluation.scores import TEXTS, score_rows
  from resnet_jax.runtime import compilation
  from resnet_jax.training import evaluator

  compilation.keep_freed_memory()
  if args.ensemble and args.workdir is None and not args.weights:
    first, *args.ensemble = args.ensemble
    _name_member(args, first)
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
    results.pop("images_per_s", None)
    print(json.dumps(results))
  else:
    place = "" if step is None else f"step {step}: "
    main = {name: results[name] for name in _MAIN if name in results}
    others = [key for key in results if key in TEXTS.keys() - _MAIN]
    show(f"{place}{evaluator.describe(main if others else results)}")
    rows = score_rows({key: results[key] for key in others})
    show(*(f"  {text}: {value}" for text, value, _ in rows[1:]))
    if args.report:
      show(f"report: {args.report}/report.html")


def _evaluate(args: argparse.Namespace) -> tuple[int | None, dict[str, float]]:
  """Returns (step of the evaluated run, or None for weights; metrics)."""
  from resnet_jax.evaluation.answers import average, collect
  from resnet_jax.evaluation.label_sets import read_label_sets, restrict, score_sets
  from resnet_jax.evaluation.report import check_folder, data_name, write_report
  from resnet_jax.evaluation.scores import score
  from resnet_jax.evaluation.views import Views

  views = Views(args.crops, args.flip, tuple(args.scales))
  if args.report:
    check_folder(args.report)  # Before any work.
    if args.label_sets:
      raise UserError("--report needs one label an image; omit it or --label-sets")
  first = _prepare(args)
  if args.fit_temperature:
    return first.step, _fit_temperature(args, first)
  others = args.report, args.ensemble, args.classes, args.label_sets, args.calibrated
  if not any(others) and views == Views():
    return first.step, first.evaluate()
  answers = collect(first, views)
  members = [answers.logits / _temperature(args, first)]
  for member in args.ensemble:
    other = argparse.Namespace(**vars(args))
    _name_member(other, member)
    prepared = _prepare(other)
    found = collect(prepared, views)
    same = found.labels.tolist() == answers.labels.tolist()
    if found.class_names != answers.class_names or not same:
      raise UserError(f"--ensemble={member}: its classes or images are other ones")
    members.append(found.logits / _temperature(other, prepared))
  answers = answers.with_logits(average(members))
  if args.classes:
    answers = restrict(answers, _read_classes(args.classes, answers))
  if args.label_sets:
    return first.step, score_sets(answers, read_label_sets(args.label_sets))
  if not args.report:
    return first.step, score(answers)
  who = f"{len(members)} networks" if args.ensemble else first.experiment.model_name
  title = f"{who} on {data_name(first)}"
  return first.step, write_report(args.report, first, answers, title)


def _temperature(args: argparse.Namespace, prepared: "Prepared") -> np.float32:
  from resnet_jax import weights
  from resnet_jax.runs.temperature import read_temperature

  if not args.calibrated:
    return np.float32(1)
  if prepared.step is None:
    return np.float32(weights.read_temperature(args.weights))
  return np.float32(read_temperature(args.workdir, prepared.step))


def _fit_temperature(
  args: argparse.Namespace, prepared: "Prepared"
) -> dict[str, float]:
  """Fits a temperature and stores it; returns the log loss before and after."""
  from resnet_jax.evaluation.answers import collect
  from resnet_jax.evaluation.scores import score
  from resnet_jax.evaluation.temperature import fit_temperature
  from resnet_jax.runs import run_dir
  from resnet_jax.runs.temperature import write_temperature

  if prepared.step is None:
    raise UserError("--fit-temperature needs --workdir RUN, where it is stored")
  saved = run_dir.load_run_config(args.workdir, args.trust_code).data
  others = {None, saved.train_split, saved.eval_split}
  if not saved.eval_split:  # One of these was evaluated.
    others |= {"test", "val", "validation"}
  if args.dataset is None and args.split in others:
    raise UserError(
      "--fit-temperature needs --split with images that are neither the training "
      "images nor those of the evaluation, or another --dataset"
    )
  answers = collect(prepared)
  found = fit_temperature(answers)
  after = answers.with_logits(answers.logits / np.float32(found))
  count = len(answers.labels)
  split = f"{args.dataset or saved.name}:{args.split or ''}"
  write_temperature(args.workdir, prepared.step, found, split, count)
  scores = {"temperature": found, "count": count}
  for name in ("loss", "calibration_error"):
    scores[name] = score(after)[name]
    scores[f"{name}_before"] = score(answers)[name]
  return scores


def _read_classes(name: str, answers: "Answers") -> list[int]:
  from resnet_jax.evaluation.label_sets import class_indices

  if name == "present":
    return sorted(set(answers.labels.tolist()))
  path = Path(os.path.expanduser(name))
  try:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"--classes={name} cannot be read: {error}") from error
  return class_indices(filter(None, map(str.strip, lines)), answers.class_names)


def _name_member(args: argparse.Namespace, member: str) -> None:
  """Makes a run or weights the network to evaluate."""
  from resnet_jax import weights

  weights.check_exists(member, "--ensemble ")
  is_run = weights.is_run(member)
  args.workdir, args.weights = (member, None) if is_run else (None, member)
  args.model = args.num_classes = args.ema = None


def _prepare(args: argparse.Namespace) -> "Prepared":
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
    return evaluator.prepare_run(
      config,
      args.workdir,
      args.checkpoint,
      trust_code=args.trust_code,
      labelled=not args.label_sets,
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
  return evaluator.prepare_weights(
    config,
    args.weights,
    ema=args.ema,
    new_head=new_head,
    labelled=not args.label_sets,
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
