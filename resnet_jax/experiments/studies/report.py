"""What a study leaves: its numbers, tables, figures, and one page with all of it."""

import base64
import html
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax import __version__
from resnet_jax.config.fields import flatten
from resnet_jax.experiments.jobs import Job
from resnet_jax.experiments.studies import figures
from resnet_jax.experiments.studies.grids import SCALES, STUDIES, Study, Variant
from resnet_jax.experiments.studies.outcomes import (
  Finding,
  Row,
  by_label,
  find,
  row_of,
  spread,
  values_of,
)
from resnet_jax.experiments.studies.published import PAPER_ERRORS
from resnet_jax.experiments.tables import write_table
from resnet_jax.runtime.atomic_files import write_text

_PACKAGES = "jax", "jaxlib", "flax", "optax", "numpy"


class Planned(NamedTuple):
  """One run of a study."""

  job: Job
  variant: Variant
  seed: int


class Report(NamedTuple):
  """What was written.

  Attributes:
    findings: the claims beside what was seen.
    table: rows of text, the header first.
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
  """Writes all files of a study from its runs that are done.

  `results.jsonl`, `table.md`, `table.csv`, figures as PNG and SVG, `report.html`.

  Args:
    out: directory; made if it is not there.
    name: of the study.
    scale: a key of `SCALES`.
    planned: all its runs, done or not.
    failed: error of each run that failed, by its name.
    command: that was given.
    changed: settings that are not the scale's.
  """
  study = STUDIES[name]
  notes = (f"config.{path} changed" for path in changed if path != "data.dir")
  images = ", ".join([SCALES[scale].text, *notes])
  rows: list[Row] = []
  curves: figures.Curves = {}
  for job, variant, seed in planned:
    row = row_of(job, variant, seed)
    if row is not None:
      rows.append({"study": name, "scale": scale} | row)
      if "diverged" not in row:
        curves.setdefault(variant.label, []).append(figures.error_curves(job.metrics()))
  paper = PAPER_ERRORS.get(scale, {})
  table = _table(rows, paper, study.measure == "responses")
  findings = find(study.claims, rows)
  write_text(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  write_table(out / "table", table)
  drawn = (
    _draw(out, study, f"{study.title}\n{images}", planned, rows, curves, paper)
    if rows
    else []
  )
  report = Report(findings, table, failed)
  page = _page(out, study, f"{scale}: {images}", planned, report, drawn, command)
  write_text(out / "report.html", page)
  return report


def _table(
  rows: Sequence[Row], paper: dict[str, str], has_responses: bool
) -> list[list[str]]:
  """A line for each variant: means and sample standard deviations over seeds."""
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
  title: str,
  planned: Sequence[Planned],
  rows: Sequence[Row],
  curves: figures.Curves,
  paper: dict[str, str],
) -> list[str]:
  series: dict[str, list[str]] = {}
  for _, variant, _ in planned:
    labels = series.setdefault(variant.series, [])
    if variant.label not in labels:
      labels.append(variant.label)
  drawn = []
  if curves:
    drawn.append(figures.draw_curves(out, title, series, curves))
  if study.over_depth:
    drawn.append(figures.draw_depth(out, title, rows, paper))
  whole = [row for row in rows if study.measure in row]
  if study.measure == "responses" and whole:
    drawn.append(figures.draw_responses(out, title, whole))
  if study.measure == "gradients" and whole:
    drawn.append(figures.draw_gradients(out, title, whole))
  return drawn


def versions() -> str:
  """Returns what ran: packages, Python, machine and date, in a line."""
  packages = ", ".join(
    f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES
  )
  return (
    f"flax-resnet {__version__}, {packages}, Python {platform.python_version()}, "
    f"{platform.system()} {platform.machine()}, {time.strftime('%Y-%m-%d')}"
  )


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #111; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { border-bottom: 1px solid #bbb; padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
pre { background: #f4f4f4; padding: .8rem; overflow: auto; font-size: 13px }
.verdict { font-weight: bold }
"""


def _page(
  out: Path,
  study: Study,
  images: str,
  planned: Sequence[Planned],
  report: Report,
  drawn: Sequence[str],
  command: str,
) -> str:
  """The page: nothing in it is loaded from elsewhere."""
  text = html.escape
  pictures = "".join(
    f'<p><img alt="{name}" src="data:image/png;base64,'
    f'{base64.b64encode((out / f"{name}.png").read_bytes()).decode()}"></p>\n'
    for name in drawn
  )
  findings = "".join(
    f'<li>{text(f.claim.text)} <span class="verdict">{text(f.verdict)}</span>: '
    f"{text(f.text)}</li>\n"
    for f in report.findings
  )
  failed = "".join(
    f"<li>{text(name)}: {text(error)}</li>\n" for name, error in report.failed.items()
  )
  done = sum(job.result() is not None for job, _, _ in planned)
  base = flatten(planned[0].job.config)
  common = {
    path: value
    for path, value in base.items()
    if all(flatten(job.config)[path] == value for job, _, _ in planned)
  }
  configs = {
    job.name: {path: v for path, v in flatten(job.config).items() if path not in common}
    for job, _, _ in planned
  }
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{text(study.title)}</title><style>{_STYLE}</style></head><body>
<h1>{text(study.title)}</h1>
<p>{text(study.text)}</p>
<p>Scale {text(images)}. {done} of {len(planned)} runs are done.</p>
<h2>What was seen</h2>
<ul>{findings or "<li>No claim has all its runs done.</li>"}
</ul>
<p>shown: the 95 % interval of the difference (Welch) is above 0; for "no worse", above
the margin below 0. seen: the difference is, but the interval is not, or there is one
seed. not seen: it is not. Curves are of the runs whose loss stayed finite.</p>
{pictures}<h2>Final errors</h2>
{_html_table(report.table)}
<p>Mean ± sample standard deviation over seeds. Training error: of augmented batches in
train mode, mean over the last quarter of the updates. Test error: after the last
update. A run whose loss was no longer finite counts as chance.</p>
{f"<h2>Failed</h2><ul>{failed}</ul>" if failed else ""}
<h2>How it was made</h2>
<pre>{text(command)}</pre>
<p>{text(versions())}</p>
<details><summary>Settings of all runs</summary><pre>{_settings(common)}</pre></details>
<details><summary>Settings of each run</summary><pre>{_each(configs)}</pre></details>
</body></html>
"""


def _settings(values: dict[str, Any]) -> str:
  return html.escape("\n".join(f"config.{k} = {v!r}" for k, v in values.items()))


def _each(configs: dict[str, dict[str, Any]]) -> str:
  return "\n\n".join(f"{html.escape(k)}\n{_settings(v)}" for k, v in configs.items())


def _html_table(table: list[list[str]]) -> str:
  def line(cells: list[str], tag: str) -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

  header, *rows = table
  body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
  return f"<table><tr>{line(header, 'th')}</tr>\n{body}</table>"
