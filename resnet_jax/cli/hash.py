"""`resnet-jax hash`: a hash of what a run has learned."""

import argparse
import json

from resnet_jax.cli.options import (
  add_checkpoint,
)

TEXT = "Print a hash of a run's parameters and statistics."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument("workdir", metavar="RUN", help="the directory of a run")
  add_checkpoint(parser)
  parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from resnet_jax.runs import run_dir
  from resnet_jax.runs.checkpoint import CheckpointStore
  from resnet_jax.runs.checksums import digest_arrays

  run_dir.load_run_config(args.workdir, trust_code=True)  # No code runs here.
  with CheckpointStore(args.workdir) as store:
    step, variables = store.restore_model(args.checkpoint)
  result = {"step": step, "hash": digest_arrays(variables)}
  print(json.dumps(result) if args.json else f"step {step}: {result['hash']}")
