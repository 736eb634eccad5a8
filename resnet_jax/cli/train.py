"""`resnet-jax train`: trains a run, resumes it, or evaluates a saved state of it."""

import argparse
import shlex
import signal
from typing import TYPE_CHECKING

from resnet_jax.cli.options import add_checkpoint, add_config, add_trust_code
from resnet_jax.cli.settings import default_config, load_config, parse_settings
from resnet_jax.config.meanings import describe_settings
from resnet_jax.config.schema import Config
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
    "names images, or digits",
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


def run(args: argparse.Namespace) -> None:
  """Connects the processes, then trains or evaluates."""
  if args.help:
    config = load_config(args.config, args.settings, trust_code=args.trust_code)
    print(f"{args.parser.format_help()}\nsettings:\n\n{describe_settings(config)}")
    return
  # Imported here, because JAX, Orbax and the rest take seconds to import.
  from resnet_jax.runtime import compilation, processes

  compilation.keep_freed_memory()
  with processes.connect(args.coordinator, args.num_processes, args.process_id):
    _run(args)


def _run(args: argparse.Namespace) -> None:
  from resnet_jax.runs import run_dir
  from resnet_jax.runs.workdir import given_or_new
  from resnet_jax.training.evaluator import describe, evaluate_run

  workdir = args.workdir
  if workdir == "":
    raise UserError("--workdir= is empty; name a directory or leave the flag out")
  saved = run_dir.read_config(workdir) if workdir else None
  config = load_config(args.config, args.settings, saved, args.trust_code)
  if args.mode == "eval":
    if workdir is None:
      raise UserError("--mode=eval needs --workdir, the directory of a run")
    # With several processes, JAX would read SIGTERM as a notice to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    step, results = evaluate_run(config, workdir, args.checkpoint, trust_code=True)
    _show(f"step {step}: {describe(results)}")
    return
  is_default = args.config is None and saved is None
  name = default_config(parse_settings(args.settings)) if is_default else ""
  with given_or_new(workdir, config.data.name) as workdir:
    _train(config, workdir, name, args.report)


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


def _train(config: Config, workdir: str, default: str, has_report: bool) -> None:
  """Trains, and prints the result.

  Args:
    config: the settings.
    workdir: the run directory.
    default: name of the config that is used by default; "" if the user named one.
    has_report: whether to write a report of the last evaluation.
  """
  from resnet_jax.runs import run_dir
  from resnet_jax.runtime.signals import Stopped
  from resnet_jax.training.evaluator import describe
  from resnet_jax.training.experiment import Experiment
  from resnet_jax.training.trainer import train

  run = f"--workdir={shlex.quote(workdir)}"
  resume = f"resnet-jax train {run} resumes it"
  try:
    experiment = Experiment.create(config)
    if default not in ("", "digits"):
      _show(*_explain(default, config))
    state, results = train(experiment, workdir)
  except Stopped as stopped:
    done = f"after step {stopped.step}, which is saved"
    _show(f"stopped {done if stopped.step else 'before the first step'}: {resume}")
    return
  except KeyboardInterrupt:
    step = run_dir.latest_step(workdir)
    hint = f"{resume} from step {step}" if step else "nothing was saved yet"
    fail(1, f"interrupted; {hint}")
  _show(f"done: {describe(results)} after {state.step} steps")
  shown = "config.json, checkpoints/, metrics.jsonl, curves.png"
  if has_report and _write_report(experiment, workdir):
    shown += ", report/"
  _show(
    f"run:  {workdir} ({shown})",
    f"next: resnet-jax evaluate {run}",
    *(f"      {line}" for line in next_commands(config, run)),
  )


def _write_report(experiment: "Experiment", workdir: str) -> bool:
  """Writes RUN/report/ for a classification; returns whether it did."""
  from resnet_jax.evaluation.answers import collect, has_answers
  from resnet_jax.evaluation.report import data_name, write_report
  from resnet_jax.runs.outbox import Outbox
  from resnet_jax.training.evaluator import prepare_run

  if not has_answers(experiment):
    return False
  prepared = prepare_run(experiment.saved_config, workdir, trust_code=True)
  title = f"{experiment.model_name} on {data_name(prepared)}"
  with Outbox(workdir) as outbox:
    write_report(f"{outbox.folder}/report", prepared, collect(prepared), title)
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
