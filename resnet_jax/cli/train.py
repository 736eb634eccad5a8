"""`resnet-jax train`: trains a run, resumes it, or evaluates a saved state of it."""

import argparse
import signal

from resnet_jax.cli.options import add_trust_code
from resnet_jax.cli.settings import load_config
from resnet_jax.config.meanings import describe_settings
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError, fail
from resnet_jax.runtime.terminal import show

TEXT = (
  "Train a network, or resume the run in --workdir. Any setting is a flag: "
  "--config.PATH=VALUE."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.epilog = (
    "examples:\n"
    "  resnet-jax train\n"
    "  resnet-jax train --config=cifar10_resnet20 --config.data.dir=DIR\n"
    "  resnet-jax train --config=finetune_photos --config.data.dir=PHOTOS\n"
    "  resnet-jax train --workdir=RUN    (resumes the run)\n"
  )
  # Not argparse's own: the defaults that it shows are those of the chosen config.
  parser.add_argument(
    "-h", "--help", action="store_true", help="show this text, with all settings"
  )
  parser.add_argument(
    "--config",
    metavar="NAME",
    help="one of `resnet-jax configs`, or a file; NAME:VARIANT takes a variant "
    "(digits, or the settings of the run in --workdir)",
  )
  parser.add_argument(
    "--workdir",
    metavar="RUN",
    help="run directory (a new one in runs/); an existing run is resumed",
  )
  parser.add_argument(
    "--mode", choices=["train", "eval"], default="train", help="(%(default)s)"
  )
  parser.add_argument(
    "--checkpoint",
    default="latest",
    help="the state that --mode=eval evaluates: latest, best, or a step",
  )
  add_trust_code(parser)
  parser.set_defaults(parser=parser)
  parser.add_argument(
    "--coordinator", metavar="HOST:PORT", help="of process 0, if no launcher tells"
  )
  # With underscores, as before there was this command.
  parser.add_argument(
    *("--num-processes", "--num_processes"),
    type=int,
    metavar="N",
    help="processes of the run",
  )
  parser.add_argument(
    *("--process-id", "--process_id"),
    type=int,
    metavar="N",
    help="number of this process, from 0",
  )


def run(args: argparse.Namespace) -> None:
  """Connects the processes, then trains or evaluates."""
  if args.help:
    config = load_config(args.config, args.settings, trust_code=args.trust_code)
    print(f"{args.parser.format_help()}\nsettings:\n\n{describe_settings(config)}")
    return
  # Only here: JAX, Orbax and the rest take seconds to import.
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
    # With several processes JAX would take it for a notice to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    step, results = evaluate_run(config, workdir, args.checkpoint, trust_code=True)
    _show(f"step {step}: {describe(results)}")
    return
  with given_or_new(workdir, config.data.name) as workdir:
    _train(config, workdir)


def _train(config: Config, workdir: str) -> None:
  from resnet_jax.runs import run_dir
  from resnet_jax.runtime.signals import Stopped
  from resnet_jax.training.evaluator import describe
  from resnet_jax.training.experiment import Experiment
  from resnet_jax.training.trainer import train

  resume = f"resnet-jax train --workdir={workdir} resumes it"
  try:
    state, results = train(Experiment.create(config), workdir)
  except Stopped as stopped:
    done = f"after step {stopped.step}, which is saved"
    _show(f"stopped {done if stopped.step else 'before the first step'}: {resume}")
    return
  except KeyboardInterrupt:
    step = run_dir.latest_step(workdir)
    hint = f"{resume} from step {step}" if step else "nothing was saved yet"
    fail(1, f"interrupted; {hint}")
  _show(
    f"done: {describe(results)} after {state.step} steps",
    f"run:  {workdir} (config.json, checkpoints/, metrics.jsonl, curves.png)",
    f"next: resnet-jax evaluate --workdir={workdir}",
    "      resnet-jax train --config.model.name=plain20",
    "      resnet-jax train --config=cifar10_resnet20 --config.data.dir=DIR",
  )


def _show(*lines: str) -> None:
  """Prints lines, in the first process of the run only."""
  import jax

  if jax.process_index() == 0:
    show(*lines)
