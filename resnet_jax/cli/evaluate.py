"""`resnet-jax evaluate`: evaluates a run or a file of weights."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from resnet_jax.cli.ensembles import member, name_member
from resnet_jax.cli.fitting import fit
from resnet_jax.cli.kinds import check_evaluate
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
from resnet_jax.cli.photos import add_calibrated, add_engine
from resnet_jax.config.allowed import MAX_SIZE
from resnet_jax.config.data_settings import DENSE_LABELS, KINDS_OF_FILES
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.runtime.errors import UserError, flags_of_settings
from resnet_jax.runtime.tables import aligned
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.evaluation.robustness import Robustness
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
  "resnet-jax evaluate --weights resnet8_digits --dataset digits --corruptions",
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
  parser.add_argument(
    "--fit-thresholds",
    action="store_true",
    help="for images of several classes: fit the threshold of each class on --split, "
    "like --fit-temperature",
  )
  add_calibrated(parser)
  add_engine(parser)
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
  parser.add_argument(
    "--corruptions",
    nargs="?",
    const="all",
    metavar="A,B",
    help="also evaluate on corrupted images, at five strengths: all, or names such as "
    "gaussian_noise,contrast (default: none; without names: all)",
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

  compilation.prepare_process()
  if args.ensemble and args.workdir is None and not args.weights:
    first, *args.ensemble = args.ensemble
    name_member(args, first)
  check_source(args)
  flags = {f"data.{name}": f"--{flag}" for flag, name in _DATA_FLAGS.items()}
  # `val_share` counts only if --split or the run names a split. Otherwise all images of
  # a folder without splits are evaluated.
  flags |= {"batch_size": "--batch-size", "data.val_share": "--split"}
  if args.workdir is None:
    flags |= MODEL_FLAGS
  if args.dataset not in (None, *_NAMES):
    named = data_config(args.dataset, args.data_dir)
    if named.name in KINDS_OF_FILES:
      flags["data.dir"] = "--dataset"
    args.dataset, args.data_dir = named.name, named.dir
  with flags_of_settings(flags):
    step, results, corrupted = _evaluate(args)
  if args.json:
    results.pop("images_per_s", None)
    more = {"corruptions": corrupted.as_json()} if corrupted else {}
    print(json.dumps(results | more))
  else:
    place = "" if step is None else f"step {step}: "
    others = {key: x for key, x in results.items() if key in TEXTS.keys() - _MAIN}
    first = {key: x for key, x in results.items() if key not in others}
    show(f"{place}{evaluator.describe(first)}")
    rows = score_rows(others)
    show(*(f"  {text}: {value}" for text, value, _ in rows[1:]))
    if corrupted:
      show("", *aligned(corrupted.rows()), "")
    if args.report:
      show(f"report: {args.report}/report.html")


def _evaluate(
  args: argparse.Namespace,
) -> "tuple[int | None, dict[str, float], Robustness | None]":
  """Returns (step of a run, or None for weights; metrics; errors if corrupted)."""
  from resnet_jax.evaluation.answers import answers_for_report, average, has_answers
  from resnet_jax.evaluation.corruptions import Corrupt, fit_channels, parse_names
  from resnet_jax.evaluation.label_sets import (
    read_classes,
    read_label_sets,
    restrict,
    score_sets,
  )
  from resnet_jax.evaluation.passes import evaluate
  from resnet_jax.evaluation.report import check_folder, score
  from resnet_jax.evaluation.robustness import measure
  from resnet_jax.evaluation.views import Views
  from resnet_jax.inference.engines import check_engine

  check_engine(args.engine)
  views = Views(args.crops, args.flip, tuple(args.scales))
  if args.report:
    check_folder(args.report)  # Before any work.
    if args.label_sets:
      raise UserError("--report needs one label an image; omit it or --label-sets")
  if args.label_sets and args.corruptions:
    raise UserError("--corruptions needs one label an image; omit it or --label-sets")
  corruptions = [] if args.corruptions is None else parse_names(args.corruptions)
  first = _prepare(args)
  kind = first.experiment.config.data.labels
  check_evaluate(args, kind)
  if args.fit_temperature or args.fit_thresholds:
    return first.step, fit(args, first), None
  others = args.report, args.ensemble, args.classes, args.label_sets, args.calibrated
  is_plain = not any(others) and not corruptions and views == Views()
  is_dense = kind in DENSE_LABELS
  if is_plain and (kind == "class" or is_dense or not has_answers(first.experiment)):
    return first.step, evaluate(first, args.engine), None
  if is_dense:
    return first.step, _write_report(args, first, answers_for_report(first)), None
  if corruptions:
    channels = first.experiment.eval_data.image_shape[-1]
    corruptions = fit_channels(corruptions, channels)
    if top := first.experiment.config.data.max_value:
      raise UserError(f"corruptions need 8-bit images, not config.data.max_value={top}")
  members = [member(args, first, views)]
  found = [members[0](None)]
  for name in args.ensemble:
    other = argparse.Namespace(**vars(args))
    name_member(other, name)
    run_member = member(other, _prepare(other), views)
    found.append(run_member(None))
    if corruptions:  # Otherwise the network can leave the memory.
      members.append(run_member)
    same = found[-1].labels.tolist() == found[0].labels.tolist()
    if found[-1].class_names != found[0].class_names or not same:
      raise UserError(f"--ensemble={name}: its classes or images are other ones")

  def joined(found: list[Any]) -> Any:
    answers = average(found)
    if not args.classes:
      return answers
    return restrict(answers, read_classes(args.classes, answers))

  def answer(corrupt: Corrupt) -> Any:
    return joined([run_member(corrupt) for run_member in members])

  answers = joined(found)
  if args.label_sets:
    scores = score_sets(answers, read_label_sets(args.label_sets))
    return first.step, scores, None
  corrupted = measure(answers, answer, corruptions) if corruptions else None
  if not args.report:
    return first.step, score(answers), corrupted
  return first.step, _write_report(args, first, answers, corrupted), corrupted


def _write_report(
  args: argparse.Namespace,
  prepared: "Prepared",
  answers: Any,
  corrupted: "Robustness | None" = None,
) -> dict[str, float]:
  """Writes --report, and returns the scores."""
  from resnet_jax.evaluation.report import title_of, write_report
  from resnet_jax.evaluation.robustness import write_robustness

  title = title_of(prepared, 1 + len(args.ensemble))
  scores = write_report(args.report, prepared, answers, title, corrupted)
  write_robustness(args.report, corrupted)
  return scores


def _prepare(args: argparse.Namespace) -> "Prepared":
  from resnet_jax import weights
  from resnet_jax.config.preprocessing import with_preprocessing
  from resnet_jax.runs import run_dir
  from resnet_jax.training import evaluator
  from resnet_jax.training.resolved_config import resolve_weights

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
  config = Config(model=model_config(args), data=DataConfig())
  config, model, new_head = resolve_weights(args.weights, config, args.ema)
  preprocessing = weights.read_preprocessing(args.weights, model)
  config.data = with_preprocessing(config.data, preprocessing)
  if config.data.labels == "numbers":
    raise UserError(
      f"{args.weights} predicts numbers, which are scored by the mean and std of their "
      "training: evaluate the run instead, with --workdir RUN"
    )
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
