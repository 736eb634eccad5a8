"""`resnet-jax train`: trains a run, resumes it, or evaluates a saved state of it."""

import argparse
import signal

from resnet_jax.cli.options import add_trust_code
from resnet_jax.cli.settings import load_config
from resnet_jax.config import fields
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError, fail

TEXT = (
  "Train a network, or resume the run in --workdir. Any setting is a flag: "
  "--config.PATH=VALUE."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags, and the list of all settings to the help."""
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.epilog = "settings, with the defaults of a config that does not say:\n"
  for path, field, value in fields.walk(Config()):
    kind = field.metadata.get("allowed", fields.type_name(path))
    parser.epilog += f"  --config.{path}: {kind} ({value!r})\n"
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
  # Only here: JAX, Orbax and the rest take seconds to import.
  from resnet_jax.runtime import compilation, processes

  compilation.keep_freed_memory()
  with processes.connect(args.coordinator, args.num_processes, args.process_id):
    _run(args)


def _run(args: argparse.Namespace) -> None:
  import jax

  from resnet_jax.runs import run_dir
  from resnet_jax.runtime.signals import Stopped
  from resnet_jax.training.evaluator import describe, evaluate_run
  from resnet_jax.training.experiment import Experiment
  from resnet_jax.training.trainer import train

  def show(text: str) -> None:
    if jax.process_index() == 0:
      print(text)

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
    show(f"step {step}: {describe(results)}")
    return
  # All processes ask for a name, also if only some have the flag.
  new = run_dir.new_workdir(config.data.name)
  workdir = workdir or new
  resume = f"resnet-jax train --workdir={workdir} resumes it"
  try:
    state, results = train(Experiment.create(config), workdir)
  except Stopped as stopped:
    show(f"stopped after step {stopped.step}, which is saved: {resume}")
    return
  except KeyboardInterrupt:
    step = run_dir.latest_step(workdir)
    hint = f"{resume} from step {step}" if step else "nothing was saved yet"
    fail(1, f"interrupted; {hint}")
  show(
    f"done: {describe(results)} after {state.step} steps\n"
    f"run:  {workdir} (config.json, checkpoints/, metrics.jsonl, curves.png)\n"
    f"next: resnet-jax evaluate --workdir={workdir}\n"
    "      resnet-jax train --config.model.name=plain20\n"
    "      resnet-jax train --config=cifar10_resnet20 --config.data.dir=DIR"
  )
