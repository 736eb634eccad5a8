"""`resnet-jax study`: its flags and its output."""

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from resnet_jax.cli.options import add_number
from resnet_jax.cli.settings import parse_settings
from resnet_jax.config.allowed import check_choice
from resnet_jax.config.fields import set_value
from resnet_jax.config.validation import validate
from resnet_jax.experiments import jobs
from resnet_jax.experiments.studies.grids import SCALES, STUDIES
from resnet_jax.experiments.studies.outcomes import row_of
from resnet_jax.experiments.studies.report import Planned, Report, write_report
from resnet_jax.experiments.studies.study import Study
from resnet_jax.runtime.errors import UserError, fail
from resnet_jax.runtime.terminal import plain, show

TEXT = (
  "Reproduce a claim of the paper: train its networks, and write numbers, tables, "
  "figures and report.html. The same command resumes it. Any setting of all runs is a "
  "flag: --config.PATH=VALUE."
)
EXAMPLES = (
  "resnet-jax study degradation",
  "resnet-jax study degradation --scale short --config.data.dir=DIR",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(STUDIES)}")
  scales = "; ".join(f"{name} ({scale.text})" for name, scale in SCALES.items())
  parser.add_argument(
    "--scale",
    default="smoke",
    help=f"data set and length of the runs: {scales} (default: %(default)s)",
  )
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="directory of the results (default: runs/NAME-SCALE)",
  )
  parser.add_argument(
    "--runs",
    metavar="DIR",
    help="directory of the runs, which studies may share (default: runs/ in --out)",
  )
  parser.add_argument(
    "--only",
    metavar="A,B",
    help="labels of the networks to train, with commas between (default: all)",
  )
  add_number(
    parser,
    "--seeds",
    "number of runs of each network, > 0 (default: the number of this study and scale)",
  )
  add_number(parser, "--jobs", "number of processes at once, > 0 (default: 1)")


def run(args: argparse.Namespace) -> None:
  """Runs the study; `args.settings` are the --config.PATH flags.

  The exit status is 1 if a run failed.
  """
  # JAX takes seconds to import.
  from resnet_jax.data import describe_change
  from resnet_jax.data.sources.opening import check_data
  from resnet_jax.runs.facts import read_facts
  from resnet_jax.runs.lock import hold

  check_choice("NAME", args.name, STUDIES)
  study = STUDIES[args.name]
  check_choice("--scale", args.scale, SCALES)
  if args.scale not in study.variants:
    known = ", ".join(study.variants)
    raise UserError(f"{args.name} has no --scale={args.scale}; choose from {known}")
  out = Path(args.out or f"runs/{args.name}-{args.scale}")
  runs = Path(args.runs) if args.runs else out / "runs"
  settings = parse_settings(args.settings)
  planned = plan(study, args.scale, runs, args.seeds, args.only, settings)
  if todo := [run.job.config for run in planned if run.job.result() is None]:
    # Every run needs the data set, and the report compares all of them.
    images = check_data(todo[0].data)
    for run in planned:
      before = read_facts(run.job.workdir).images
      if change := describe_change(before, images.get("training", before)):
        raise UserError(
          f"the run {run.job.workdir} is on {before[0]:,} training images, and now "
          f"{change}; put the old ones back, or use another --out"
        )
  if not args.out:
    show(f"results: {out} (--out names another directory)")
  console = Console()
  with hold(str(out), f"--out={out}"):
    try:
      failed = _train(planned, args.jobs or 1, console)
    except KeyboardInterrupt:
      fail(1, jobs.INTERRUPTED)
    command = shlex.join(["resnet-jax", *sys.argv[1:]])
    report = write_report(
      out, args.name, args.scale, planned, failed, command, list(settings)
    )
  _show(report, console)
  show(str(out / "report.html"))
  if failed:
    sys.exit(1)


def plan(
  study: Study,
  scale: str,
  runs: Path,
  seeds: int | None = None,
  only: str | None = None,
  settings: dict[str, Any] | None = None,
) -> list[Planned]:
  """Returns the runs of a study: all networks with the first seed, then the next seed.

  Args:
    study: the study.
    scale: one of the study's scales.
    runs: directory in which the runs' directories are created.
    seeds: number of runs per network; None is the number of the scale.
    only: labels of networks, separated by commas; None is all.
    settings: settings for all runs, by path.

  Raises:
    ValueError: a label is unknown, a value is not allowed, or the study itself sets the
      setting.
  """
  variants = study.variants[scale]
  if only is not None:
    labels = only.split(",")
    for label in labels:
      check_choice("--only", label, [variant.label for variant in variants])
    variants = [variant for variant in variants if variant.label in labels]
  count = seeds or study.seeds.get(scale, SCALES[scale].seeds)
  planned = []
  for seed in range(count):
    for variant in variants:
      config = SCALES[scale].config()
      own = {**variant.settings, "seed": config.seed + seed}
      for path, value in (settings or {}).items():
        if path in own:
          raise UserError(f"config.{path} is set by the study itself; remove the flag")
        set_value(config, path, value)
      for path, value in own.items():
        set_value(config, path, value)
      validate(config)
      name = f"{variant.label}, seed {seed}"
      directory = runs / name.replace(", ", "-").replace(" ", "_")
      job = jobs.Job(name, config, directory, study.measure)
      planned.append(Planned(job, variant, seed))
  return planned


def _train(planned: list[Planned], limit: int, console: Console) -> dict[str, str]:
  """Trains the runs that are not done; returns {name: error} of failed ones."""
  todo = [run for run in planned if run.job.result() is None]
  if len(todo) < len(planned):
    show(f"{len(planned) - len(todo)} runs are done")
  failed = {}
  by_job = {run.job: run for run in todo}
  with (
    contextlib.closing(jobs.run_at_once(by_job, limit)) as running,
    jobs.Display(len(todo), console) as display,
  ):
    for job, has_ended in running:
      if not has_ended:
        display.update(job)
        continue
      _, variant, seed = by_job[job]
      row = row_of(job, variant, seed)
      if row is None:
        failed[job.name] = job.error()
        display.end(job, f"failed: {failed[job.name]}")
      else:
        display.end(
          job,
          row.get("diverged")
          or f"training error {row['train_error']:.2f} %, test error "
          f"{row['test_error']:.2f} %, {row['seconds']:.0f} s",
        )
  return failed


def _show(report: Report, console: Console) -> None:
  header, *rows = report.table
  table = Table(header[0], box=None)
  for name in header[1:]:
    table.add_column(name, justify="right")
  for row in rows:
    table.add_row(*map(plain, row))
  if rows:
    console.print(table, soft_wrap=True)
  for finding in report.findings:
    show(f"{finding.verdict.capitalize()}: {finding.claim.text} {finding.text}")
