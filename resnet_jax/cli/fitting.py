"""What `resnet-jax evaluate` fits and stores: a temperature, or thresholds."""

import argparse
from typing import TYPE_CHECKING

from resnet_jax.runtime.errors import UserError

if TYPE_CHECKING:  # Importing JAX takes seconds; `--help` need not wait.
  from resnet_jax.training.evaluator import Prepared


def fit(args: argparse.Namespace, prepared: "Prepared") -> dict[str, float]:
  """Fits a temperature or thresholds and stores them with the run."""
  from resnet_jax.evaluation.fitting import fit_and_store
  from resnet_jax.runs import run_dir

  name = "temperature" if args.fit_temperature else "thresholds"
  flag = f"--fit-{name}"
  if args.workdir is None:
    raise UserError(f"{flag} needs --workdir RUN, where it is stored")
  saved = run_dir.load_run_config(args.workdir, args.trust_code).data
  others = {None, saved.train_split, saved.eval_split}
  if not saved.eval_split:  # One of these was evaluated.
    others |= {"test", "val", "validation"}
  if args.dataset is None and args.split in others:
    raise UserError(
      f"{flag} needs --split with images that are neither the training images nor "
      "those of the evaluation, or another --dataset"
    )
  split = f"{args.dataset or saved.name}:{args.split or ''}"
  return fit_and_store(prepared, args.workdir, name, split, args.engine)
