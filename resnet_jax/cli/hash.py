"""`resnet-jax hash`: prints a hash of a run's weights."""

import argparse
import json

from resnet_jax.cli.options import add_checkpoint, add_json, add_workdir, require

TEXT = "Print a hash of a run's parameters and batch-norm statistics."
EXAMPLES = (
  "resnet-jax hash --workdir RUN",
  "resnet-jax hash --workdir RUN --checkpoint best --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  add_workdir(parser)
  add_checkpoint(parser)
  add_json(parser)
  parser.set_defaults(former_words={"workdir": "--workdir RUN"})


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.runs import run_dir
  from resnet_jax.runs.checkpoint import CheckpointStore
  from resnet_jax.runs.checksums import digest_arrays

  require(args, "--workdir", "RUN")
  run_dir.load_run_config(args.workdir, trust_code=True)  # No code runs here.
  with CheckpointStore(args.workdir) as store:
    step, variables = store.restore_model(args.checkpoint)
  result = {"step": step, "hash": digest_arrays(variables)}
  print(json.dumps(result) if args.json else f"step {step}: {result['hash']}")
