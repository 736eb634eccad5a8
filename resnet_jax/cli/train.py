"""`resnet-jax train`: trains a run, resumes it, or evaluates a saved state of it."""

import argparse
import shlex
import signal
import sys
import threading
from typing import TYPE_CHECKING

from resnet_jax.cli.options import add_checkpoint, add_config, add_trust_code
from resnet_jax.cli.settings import default_config, load_config, parse_settings
from resnet_jax.config.meanings import describe_settings
from resnet_jax.config.schema import Config
from resnet_jax.config.validation import validate
from resnet_jax.runtime import native_library
from resnet_jax.runtime.errors import UserError, fail
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.training.experiment import Experiment

TEXT = (
  "Train a network, or resume the run in --workdir. Any setting is a flag: "
  "--config.PATH=VALUE."
)
EXAMPLES = (
  "resnet-jax train",
  "resnet-jax train --config=cifar10_resnet20 --config.data.dir=DIR",
  "resnet-jax train --config=finetune_photos --config.data.dir=PHOTOS",
  "resnet-jax train --workdir=RUN  # resumes the run",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  # Not argparse's help: this one shows the defaults of the chosen config.
  parser.add_argument(
    "-h", "--help", action="store_true", help="show this text, with all settings"
  )
  add_config(
    parser,
    "the settings of the run in --workdir, or finetune_photos if --config.data.dir "
    "names images (voc_deeplabv3_resnet50 or coco_retinanet_resnet50 with "
    "--config.data.labels=mask or boxes), or digits",
  )
  parser.add_argument(
    "--workdir",
    metavar="RUN",
    help="directory of the run; an existing run is resumed (default: a new one in "
    "runs/)",
  )
  parser.add_argument(
    "--mode",
    choices=["train", "eval"],
    default="train",
    help="train, or evaluate the run in --workdir with all processes; `resnet-jax "
    "evaluate` uses only one process (default: %(default)s)",
  )
  add_checkpoint(parser)
  parser.add_argument(
    "--report",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="write RUN/report/, a page about the last evaluation, at the end of the run",
  )
  add_trust_code(parser)
  parser.add_argument(
    "--stopped-status",
    type=_status,
    default=0,
    metavar="N",
    help="exit status of a run that a signal stopped before its end; with 75, a "
    "launcher counts it as failed and starts it again (default: %(default)s)",
  )
  parser.add_argument(
    "--profile",
    type=_updates,
    metavar="STEPS",
    help="trace this number of steps, after ten others, or the steps FIRST:LAST, such "
    "as 100:120; print what they spent time on; the trace goes to RUN/profile/ "
    "(default: none)",
  )
  parser.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    help="address of process 0 (default: as the launcher says)",
  )
  parser.add_argument(
    "--num-processes",
    type=int,
    metavar="N",
    help="number of processes of the run (default: as the launcher says)",
  )
  parser.add_argument(
    "--process-id",
    type=int,
    metavar="N",
    help="number of this process, from 0 (default: as the launcher says)",
  )


def _status(text: str) -> int:
  """Reads an exit status."""
  if not text.isdecimal() or int(text) > 255:
    raise argparse.ArgumentTypeError(f"{text} must be a whole number in [0, 255]")
  return int(text)


def _updates(text: str) -> int | tuple[int, int]:
  """Returns the number of updates to trace, or the steps at their begin and end."""
  first, colon, last = text.partition(":")
  if not first.isdecimal() or (colon and not last.isdecimal()):
    raise argparse.ArgumentTypeError(
      f"{text!r} must be a number of steps, such as 20, or FIRST:LAST, such as 100:120"
    )
  return (int(first), int(last)) if colon else int(first)


def run(args: argparse.Namespace) -> None:
  """Connects the processes, then trains or evaluates."""
  if args.help:
    config = load_config(args.config, args.settings, trust_code=args.trust_code)
    print(f"{args.parser.format_help()}\nsettings:\n\n{describe_settings(config)}")
    return
  may_be_native = parse_settings(args.settings).get("kernels", "auto") != "xla"
  is_alone = args.coordinator is None and args.num_processes is None
  if may_be_native and is_alone and not native_library.has_accelerator_plugin():
    native_library.start("float32")  # While JAX is imported.
  # Imported here, because JAX, Orbax and the rest take seconds to import.
  from resnet_jax.runtime import compilation, interruption, processes

  interruption.set_stopped_status(args.stopped_status)
  compilation.keep_freed_memory()
  with processes.connect(args.coordinator, args.num_processes, args.process_id):
    compilation.keep_compiled()
    was_stopped = _run(args)
  if was_stopped and args.stopped_status:  # Later than the end of all processes.
    sys.exit(args.stopped_status)


def _run(args: argparse.Namespace) -> bool:
  """Trains or evaluates; returns whether a signal stopped the run."""
  import jax

  from resnet_jax.runs import run_dir
  from resnet_jax.runs.agreement import check_same_arguments
  from resnet_jax.runs.workdir import given_or_new
  from resnet_jax.training.evaluator import describe, evaluate_run

  if jax.distributed.is_initialized():  # Else the flags are checked before JAX starts.
    flags = "mode", "report", "checkpoint"
    check_same_arguments(**{f"--{flag}": getattr(args, flag) for flag in flags})
  workdir = args.workdir
  if workdir == "":
    raise UserError("--workdir= is empty; name a directory or leave the flag out")
  saved = run_dir.read_config(workdir) if workdir else None
  config = load_config(args.config, args.settings, saved, args.trust_code)
  if args.mode == "eval":
    if args.profile is not None:
      raise UserError("--profile is for --mode=train; leave it out of --mode=eval")
    if workdir is None:
      raise UserError("--mode=eval needs --workdir, the directory of a run")
    # With several processes, JAX would read SIGTERM as a notice to save.
    if threading.current_thread() is threading.main_thread():  # As Python demands.
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
    step, results = evaluate_run(config, workdir, args.checkpoint, trust_code=True)
    _show(f"step {step}: {describe(results)}")
    return False
  is_default = args.config is None and saved is None
  name = default_config(parse_settings(args.settings)) if is_default else ""
  with given_or_new(workdir, config.data.name) as workdir:
    return _train(config, workdir, name, args.report, args.profile)


def _explain(name: str, config: Config) -> list[str]:
  """Explains which config is used for a folder of images, and why."""
  lines = [
    f"config: --config={name}, because --config.data.dir is given and --config is not",
    f"        {config.model.name} at {config.data.image_size} pixels, "
    f"{config.num_epochs:g} epochs, learning rate {config.optim.learning_rate:g}; "
    "each setting is a flag, see resnet-jax train --help",
  ]
  if not config.init_from:
    lines += [
      "advice: training starts from random weights; trained weights need fewer photos: "
      "add --config.init_from=hf://timm/resnet50.a1_in1k or a file"
    ]
  return lines


def _train(
  config: Config,
  workdir: str,
  default: str,
  has_report: bool,
  profile: int | tuple[int, int] | None,
) -> bool:
  """Trains, and prints the result; returns whether a signal stopped the run.

  Args:
    config: the settings.
    workdir: the run directory.
    default: name of the config that is used by default; "" if the user named one.
    has_report: whether to write a report of the last evaluation.
    profile: see `train`.
  """
  from resnet_jax.runs import run_dir
  from resnet_jax.runs.trackers.opening import find_trackers
  from resnet_jax.runtime.signals import Stopped
  from resnet_jax.training.evaluator import describe
  from resnet_jax.training.experiment import Experiment
  from resnet_jax.training.hooks import Hook
  from resnet_jax.training.profiling import check_profile
  from resnet_jax.training.trainer import train

  class Report(Hook):
    """Writes RUN/report/ while the trackers are open, as they upload it."""

    is_written = False

    def on_end(self, state: object, metrics: object) -> None:
      del state, metrics
      self.is_written = has_report and _write_report(experiment, workdir)

  validate(config)
  find_trackers(config.trackers)  # Before any image is read.
  if config.num_steps:  # Else the images are counted first.
    check_profile(profile, config.num_steps)
  run, report = f"--workdir={shlex.quote(workdir)}", Report()
  resume = f"resnet-jax train {run} resumes it"
  try:
    experiment = Experiment.create(config)
    if default not in ("", "digits"):
      _show(*_explain(default, config))
    state, results = train(experiment, workdir, hooks=[report], profile=profile)
  except Stopped as stopped:
    done = f"after step {stopped.step}, which is saved"
    _show(f"stopped {done if stopped.step else 'before the first step'}: {resume}")
    return True
  except KeyboardInterrupt:
    step = run_dir.latest_step(workdir)
    hint = f"{resume} from step {step}" if step else "nothing was saved yet"
    fail(1, f"interrupted; {hint}")
  _show(f"done: {describe(results)} after {state.step} steps")
  shown = "config.json, checkpoints/, metrics.jsonl, curves.png"
  if report.is_written:
    shown += ", report/"
  _show(
    f"run:  {workdir} ({shown})",
    f"next: resnet-jax evaluate {run}",
    *(f"      {line}" for line in next_commands(config, run)),
  )
  return False


def _write_report(experiment: "Experiment", workdir: str) -> bool:
  """Writes RUN/report/ for a task of this package; returns whether it did."""
  from resnet_jax.evaluation.answers import answers_for_report, has_report
  from resnet_jax.evaluation.report import title_of, write_report
  from resnet_jax.runs.outbox import Outbox
  from resnet_jax.training.evaluator import prepare_run

  if not has_report(experiment):
    return False
  prepared = prepare_run(experiment.saved_config, workdir, trust_code=True)
  with Outbox(workdir) as outbox:
    answers = answers_for_report(prepared)
    write_report(f"{outbox.folder}/report", prepared, answers, title_of(prepared))
    outbox.send()
  return True


def next_commands(config: Config, run: str) -> list[str]:
  """Returns what to do after a run: try another recipe, or use the network."""
  if config.data.factory or config.data.name == "synthetic":
    return []
  if config.data.name == "digits":
    return [
      "resnet-jax train --config.model.name=plain20",
      "resnet-jax train --config=cifar10_resnet20 --config.data.dir=DIR",
    ]
  return [f"resnet-jax predict {run} PHOTO"]


def _show(*lines: str) -> None:
  """Prints lines, in the first process of the run only."""
  import jax

  if jax.process_index() == 0:
    show(*lines)
