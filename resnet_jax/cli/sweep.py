"""`resnet-jax sweep`: its flags, its output and its files."""

import argparse
import contextlib
import importlib.util
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from resnet_jax.cli.options import (
  add_config,
  add_former_names,
  add_number,
  add_trust_code,
)
from resnet_jax.cli.settings import load_config
from resnet_jax.config import serialization
from resnet_jax.config.files import configs_dir, find_file
from resnet_jax.experiments import jobs
from resnet_jax.runtime.atomic_files import write_text
from resnet_jax.runtime.errors import UserError, fail
from resnet_jax.runtime.tables import write_table
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:
  import optuna

  from resnet_jax.config.schema import Config
  from resnet_jax.experiments.sweeps.search import Search

TEXT = (
  "Search for better settings of an experiment: each trial is a run that is evaluated "
  "on images held out from training. The same command resumes the search. Processes "
  "that share a --storage share the search. Any setting is a flag: --config.PATH=VALUE."
)
EXAMPLES = (
  "resnet-jax sweep --config=digits --space digits --trials 30 --jobs 2",
  "resnet-jax sweep --config=digits --space FILE.py --sampler grid --out NEW",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  add_config(parser)
  add_trust_code(parser)
  parser.add_argument(
    "--space",
    metavar="FILE",
    required=True,
    help="Python file whose get_space() says which settings to search, or the name of "
    "one in configs/sweeps/, such as digits",
  )
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="directory of the runs and results (default: runs/sweep-NAME)",
  )
  add_number(
    parser,
    "--trials",
    "number of trials in all, by all processes, > 0 (default: 20, or the whole grid)",
  )
  add_number(parser, "--jobs", "number of trials at once, > 0 (default: 1)")
  parser.add_argument(
    "--storage",
    metavar="URL",
    help="where the trials are kept: sqlite:///FILE, the URL of a database, or a file "
    "on storage that all processes share (default: trials.log in --out)",
  )
  name = parser.add_argument(
    "--name", help="name of the search in the storage (default: the config's name)"
  )
  add_former_names(parser, name, "--study")
  parser.add_argument(
    "--sampler",
    default="tpe",
    help="how settings are chosen: tpe, random or grid (default: %(default)s)",
  )
  parser.add_argument(
    "--metric",
    default="",
    help="metric that judges a trial: top1 or loss; for several classes an image, "
    "sample_f1, exact or loss; for numbers, skill, mae or loss (default: the first)",
  )
  parser.add_argument(
    "--val-share",
    type=float,
    default=0.2,
    metavar="X",
    help="fraction of the training images, in [0.01, 0.99], that are held out to "
    "evaluate the trials; 0 evaluates on config.data.eval_split (default: %(default)s)",
  )
  parser.add_argument(
    "--no-prune",
    action="store_true",
    help="train every trial to its end, even if it is worse than the median",
  )


def run(args: argparse.Namespace) -> None:
  """Runs trials up to the wanted number; `args.settings` are the --config.PATH flags.

  The exit status is 1 if no trial ended.
  """
  if importlib.util.find_spec("optuna") is None:
    raise UserError("a sweep needs optuna: pip install 'flax-resnet[sweep]'")
  from resnet_jax.data.sources.opening import check_data
  from resnet_jax.experiments.sweeps import search, space
  from resnet_jax.runs.lock import hold

  base = load_config(args.config, args.settings, trust_code=args.trust_code)
  args.metric = search.check_names(args.sampler, args.metric, base.data.labels)
  folder = configs_dir() / "sweeps"
  found = find_file(args.space, folder)
  if found is None or found.suffix != ".py":
    names = ", ".join(sorted(path.stem for path in folder.glob("*.py")))
    raise UserError(
      f"--space={args.space} must be an existing Python file, or one of {names}"
    )
  distributions = space.load_space(str(found))
  space.check_space(distributions, base)
  config = space.hold_out(base, args.val_share) if args.val_share else base
  file, *variant = args.config.split(":")
  name = args.name or ":".join([Path(file).stem, *variant])
  limit = args.jobs or 1
  out = Path(args.out or f"runs/sweep-{name.replace(':', '-')}")
  images = check_data(config.data)  # Every trial needs the data set.
  if not args.out:
    show(f"results: {out} (--out names another directory)")
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
    trials = search.Search(study, distributions, config, out, args.metric, images)
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
  """Writes table, figures and the best config, and prints a summary."""
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
  if TrialState.COMPLETE not in states:
    show(f"{counts}: {out / 'trials.md'}")
    sys.exit(1)
  best = study.best_trial
  values = ", ".join(f"{path}={value!r}" for path, value in best.params.items())
  judge = "held-out images" if args.val_share else "config.data.eval_split"
  doc = (
    f"The best of {len(states)} trials of {args.config}: its {args.metric} is "
    f"{best.value:.4f}\non {judge}.\n\n"
    f"Command: resnet-jax train --config={out / 'best.py'}\n"
  )
  write_text(
    out / "best.py", serialization.to_source(space.with_values(base, best.params), doc)
  )
  names = figures.draw_figures(study, out, args.metric)
  todo = "next, train once for the test result" if args.val_share else "next"
  show(  # The files come first, because `| head` may end the command here.
    f"{counts}: {out / 'trials.md'}",
    f"best: trial {best.number}, {args.metric} {best.value:.4f}: {values}",
    f"figures: {', '.join(str(out / name) for name in names)}",
    f"{todo}: resnet-jax train --config={out / 'best.py'}",
  )
