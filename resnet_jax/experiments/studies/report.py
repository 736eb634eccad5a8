"""Writes the files of a study: numbers, tables, figures, and a page that shows them."""

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax import __version__
from resnet_jax.config.fields import flatten
from resnet_jax.experiments.jobs import Job
from resnet_jax.experiments.studies import figures
from resnet_jax.experiments.studies.grids import SCALES, STUDIES
from resnet_jax.experiments.studies.outcomes import (
  Finding,
  Row,
  by_label,
  find,
  row_of,
  spread,
  values_of,
)
from resnet_jax.experiments.studies.page import Page
from resnet_jax.experiments.studies.published import PAPER_ERRORS
from resnet_jax.experiments.studies.study import Study, Variant
from resnet_jax.runtime.atomic_files import write_text
from resnet_jax.runtime.tables import write_table

_PACKAGES = "jax", "jaxlib", "flax", "optax", "numpy"


class Planned(NamedTuple):
  """One run of a study."""

  job: Job
  variant: Variant
  seed: int


class Report(NamedTuple):
  """The content of a report.

  Attributes:
    findings: the claims that could be checked.
    table: final errors, rows of text, the header first.
    failed: error of each run that ended without a result, by its name.
  """

  findings: list[Finding]
  table: list[list[str]]
  failed: dict[str, str]


def write_report(
  out: Path,
  name: str,
  scale: str,
  planned: Sequence[Planned],
  failed: dict[str, str],
  command: str,
  changed: Sequence[str] = (),
) -> Report:
  """Writes all files of a study, from its runs that are done.

  The files are `results.jsonl`, `table.md`, `table.csv`, figures as PNG and SVG, and
  `report.html`.

  Args:
    out: directory; created if it does not exist.
    name: name of the study.
    scale: a key of `SCALES`.
    planned: all runs of the study, done or not.
    failed: error of each run that failed, by its name.
    command: the command that the user gave.
    changed: settings that differ from those of the scale.
  """
  study, paper = STUDIES[name], PAPER_ERRORS.get(scale, {})
  done: dict[str, Row] = {}
  curves: figures.Curves = {}
  for job, variant, seed in planned:
    row = row_of(job, variant, seed)
    if row is not None:
      done[job.name] = {"study": name, "scale": scale} | row
      if "diverged" not in row:
        curves.setdefault(variant.label, []).append(figures.error_curves(job.metrics()))
  rows = [*done.values()]
  table = _table(rows, paper, study.measure == "responses")
  report = Report(find(study.claims, rows), table, failed)
  write_text(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  write_table(out / "table", table)
  common, own = _settings(planned)
  page = Page(
    title=study.title,
    text=study.text,
    facts=_facts(scale, changed, len(planned), rows),
    findings=report.findings,
    drawn=_draw(out, study, planned, rows, curves, paper) if rows else [],
    table=table if rows else [],
    runs=_runs(planned, done, failed),
    links={
      job.name: Path(os.path.relpath(job.workdir, out)).as_posix()
      for job, _, _ in planned
      if job.workdir.exists()
    },
    failed=failed,
    command=command,
    versions=versions(),
    common=common,
    own=own,
    folder=out,
  )
  write_text(out / "report.html", page.html())
  return report


def _facts(
  scale: str, changed: Sequence[str], planned: int, rows: Sequence[Row]
) -> list[str]:
  """Returns sentences on the scale, changed settings, number of runs and time."""
  facts = [f"Scale {scale}: {SCALES[scale].text}."]
  paths = [f"config.{path}" for path in changed if path != "data.dir"]
  if paths:
    facts.append(f"Settings that differ from the scale's: {', '.join(paths)}.")
  facts.append(f"{len(rows)} of {planned} runs are done.")
  if rows:
    total = _time(sum(row["seconds"] for row in rows))
    facts.append(f"Wall time of all runs together: {total} (hours:minutes:seconds).")
  return facts


def _time(seconds: float) -> str:
  """Returns a time as hours, minutes and seconds."""
  return str(datetime.timedelta(seconds=round(seconds)))


def _runs(
  planned: Sequence[Planned], done: Mapping[str, Row], failed: Mapping[str, str]
) -> list[list[str]]:
  """Returns a row for each planned run: state, errors, time and device."""
  errors = "training error (%)", "test error (%)"
  table = [["run", "state", *errors, "wall time", "device"]]
  for job, _, _ in planned:
    row = done.get(job.name)
    if row is None:
      state = "failed" if job.name in failed else "not done"
      table.append([job.name, state, "", "", "", ""])
      continue
    values = (f"{row[metric]:.2f}" for metric in ("train_error", "test_error"))
    state = "diverged" if "diverged" in row else "done"
    table.append([job.name, state, *values, _time(row["seconds"]), row["device"]])
  return table


def _settings(
  planned: Sequence[Planned],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
  """Returns the settings that all runs share, and the other settings of each run."""
  configs = {job.name: flatten(job.config) for job, _, _ in planned}
  first = next(iter(configs.values()))
  common = {
    path: value
    for path, value in first.items()
    if all(config[path] == value for config in configs.values())
  }
  own = {
    name: {path: value for path, value in config.items() if path not in common}
    for name, config in configs.items()
  }
  return common, own


def _table(
  rows: Sequence[Row], paper: dict[str, str], has_responses: bool
) -> list[list[str]]:
  """Returns a row per network: means and sample standard deviations over seeds."""
  header = ["network", "parameters", "training error (%)", "test error (%)", "runs"]
  header += ["mean response"] * has_responses
  header += ["paper's test error (%)"] * bool(paper)
  table = [header]
  for label, group in by_label(rows).items():
    diverged = sum("diverged" in row for row in group)
    count = str(len(group)) + (f", {diverged} diverged" if diverged else "")
    params = next((f"{row['params']:,}" for row in group if "params" in row), "")
    line = [
      label,
      params,
      *(
        spread([row[m] for row in group]).text() for m in ("train_error", "test_error")
      ),
      count,
    ]
    if has_responses:
      responses = values_of(group, "response")
      line.append(spread(responses).text(4) if responses else "")
    table.append(line + [paper.get(label, "")] * bool(paper))
  return table


def _draw(
  out: Path,
  study: Study,
  planned: Sequence[Planned],
  rows: Sequence[Row],
  curves: figures.Curves,
  paper: dict[str, str],
) -> list[figures.Drawn]:
  variants = [variant for _, variant, _ in planned]
  drawn = []
  if curves:
    drawn.append(figures.draw_curves(out, variants, curves))
  if study.over_depth:
    drawn.append(figures.draw_depth(out, variants, rows, paper))
  measured = [row for row in rows if study.measure in row]
  if study.measure == "responses" and measured:
    drawn.append(figures.draw_responses(out, variants, measured))
  if study.measure == "gradients" and measured:
    drawn.append(figures.draw_gradients(out, variants, measured))
  return drawn


def versions() -> str:
  """Returns the versions of packages and Python, the machine and the date."""
  packages = ", ".join(
    f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES
  )
  return (
    f"flax-resnet {__version__}, {packages}, Python {platform.python_version()}, "
    f"{platform.system()} {platform.machine()}, {time.strftime('%Y-%m-%d')}"
  )
