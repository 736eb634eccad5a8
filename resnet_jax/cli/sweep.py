"""`resnet-jax sweep`: its flags, and what it prints and leaves."""

import argparse
import contextlib
import importlib.util
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from resnet_jax.cli.options import add_number, add_trust_code
from resnet_jax.cli.settings import load_config
from resnet_jax.config import serialization
from resnet_jax.experiments import jobs
from resnet_jax.experiments.tables import write_table
from resnet_jax.runtime.atomic_files import write_text
from resnet_jax.runtime.errors import UserError, fail
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:
  import optuna

  from resnet_jax.config.schema import Config
  from resnet_jax.experiments.sweeps.search import Search

TEXT = (
  "Search for better settings of an experiment: each trial is a run, and is judged by "
  "images kept from training. The same command goes on where it stopped; processes "
  "that share a --storage share the search. Other settings: --config.a.b=value."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
    "--config", metavar="NAME", required=True, help="of `resnet-jax configs`, or a file"
  )
  add_trust_code(parser)
  parser.add_argument(
    "--space", metavar="FILE", required=True, help="in configs/sweeps/"
  )
  parser.add_argument(
    "--out", metavar="DIR", required=True, help="for runs and results"
  )
  add_number(parser, "--trials", "how many in all, by all processes (20; grid: all)")
  add_number(parser, "--jobs", "trials at once (1)")
  parser.add_argument(
    "--storage",
    metavar="URL",
    help="sqlite:///FILE, a database, or a file on storage that all share "
    "(DIR/trials.log)",
  )
  parser.add_argument("--study", metavar="NAME", help="in the storage (the config's)")
  parser.add_argument(
    "--sampler", default="tpe", help="tpe, random or grid (%(default)s)"
  )
  parser.add_argument("--metric", default="top1", help="top1 or loss (%(default)s)")
  parser.add_argument(
    "--val-share",
    type=float,
    default=0.2,
    metavar="X",
    help="of the training images, that judge; 0 takes the config's eval_split "
    "(%(default)s)",
  )
  parser.add_argument(
    "--no-prune",
    action="store_true",
    help="let trials that are worse than the median go on to their end",
  )


def run(args: argparse.Namespace) -> None:
  """Runs trials until there are enough; `args.settings` are flags of settings.

  Exit status 1 if no trial ended.
  """
  if importlib.util.find_spec("optuna") is None:
    raise UserError("a sweep needs optuna: pip install 'flax-resnet[sweep]'")
  from resnet_jax.experiments.sweeps import search, space
  from resnet_jax.runs.lock import hold

  base = load_config(args.config, args.settings, trust_code=args.trust_code)
  search.check_names(args.sampler, args.metric)
  distributions = space.load_space(args.space)
  space.check_space(distributions, base)
  config = space.hold_out(base, args.val_share) if args.val_share else base
  out, limit = Path(args.out), args.jobs or 1
  file, *variant = args.config.split(":")
  name = args.study or ":".join([Path(file).stem, *variant])
  with hold(str(out), f"--out={out}"):
    study = search.open_study(
      args.storage or str(out / "trials.log"),
      name,
      args.sampler,
      args.metric,
      not args.no_prune,
      base.seed,
      f"{platform.node()}:{out.resolve()}" if args.storage else "",
    )
    trials = search.Search(study, distributions, config, out, args.metric)
    is_grid = args.sampler == "grid"
    total = args.trials or (sys.maxsize if is_grid else 20)
    first = trials.enqueue(is_grid, total)
    if is_grid:
      total = first
    trials.take_up()
    try:
      _run_trials(trials, total, limit)
    except KeyboardInterrupt:
      fail(1, jobs.INTERRUPTED)
    _write(study, base, out, args)


def _run_trials(trials: "Search", total: int, limit: int) -> None:
  todo = total - trials.count() + trials.waiting()
  with (
    contextlib.closing(jobs.run_at_once(trials.jobs(total), limit)) as running,
    jobs.Display(todo, Console()) as display,
  ):
    for job, has_ended in running:
      if has_ended:
        display.end(job, trials.end(job))
      else:
        display.update(job)
        trials.report(job)


def _write(
  study: "optuna.Study", base: "Config", out: Path, args: argparse.Namespace
) -> None:
  """Writes table, figures and the best config, and says what was found."""
  from optuna.trial import TrialState

  from resnet_jax.experiments.sweeps import figures, results, space

  write_table(out / "trials", results.tabulate(study, args.metric))
  states = [trial.state for trial in results.ended_trials(study)]
  counts = ", ".join(
    f"{states.count(state)} {text}"
    for state, text in (
      (TrialState.COMPLETE, "done"),
      (TrialState.PRUNED, "pruned"),
      (TrialState.FAIL, "failed"),
    )
  )
  show(f"{counts}: {out / 'trials.md'}")
  if TrialState.COMPLETE not in states:
    sys.exit(1)
  best = study.best_trial
  values = ", ".join(f"{path}={value!r}" for path, value in best.params.items())
  show(f"best: trial {best.number}, {args.metric} {best.value:.4f}: {values}")
  judge = "held-out images" if args.val_share else "config.data.eval_split"
  doc = (
    f"The best of {len(states)} trials around {args.config}, by {args.metric} "
    f"{best.value:.4f}\non {judge}.\n\n"
    f"Command: resnet-jax train --config={out / 'best.py'}\n"
  )
  write_text(
    out / "best.py", serialization.to_source(space.with_values(base, best.params), doc)
  )
  names = figures.draw_figures(study, out, args.metric)
  todo = "next, the test images, once" if args.val_share else "next"
  show(
    f"figures: {', '.join(str(out / name) for name in names)}",
    f"{todo}: resnet-jax train --config={out / 'best.py'}",
  )
