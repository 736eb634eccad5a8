"""The page of a study, `report.html`: one file that needs no other resources."""

import base64
import dataclasses
import html
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.experiments.studies.figures import Drawn
from resnet_jax.experiments.studies.forest import forest_plots
from resnet_jax.experiments.studies.outcomes import Finding
from resnet_jax.runtime.page_style import STYLE

_VERDICTS = {
  "Shown": "The difference is statistically significant: its 95 % interval (Welch's) "
  "is above 0. If the claim has a margin, the interval is above minus the margin.",
  "Seen": "The difference has the sign that is claimed, but it may be chance: 0 is "
  "inside the interval, or there is only one seed.",
  "Not seen": "The difference does not have the sign that is claimed.",
}
_TERMS = {
  "Training error": "Error on augmented training batches in train mode: the mean over "
  "the last quarter of the updates.",
  "Test error": "Error on the test images after the last update.",
  "a ± b": "Mean and sample standard deviation over the seeds.",
  "Diverged": "The loss of a run was no longer finite. Its errors are those of "
  "random guessing, and it has no curve.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
  """The content of a study's page. All texts are plain text, which `html` escapes.

  Attributes:
    title: title of the study.
    text: what the paper says.
    facts: sentences about scale, runs and time.
    findings: the claims, and what the runs say about them.
    drawn: figures in `folder`.
    table: final errors, rows of text, the header first; empty if no run has a result.
    runs: a row for each run, the header first.
    links: the directory of each run, relative to the page.
    failed: error of each run that failed, by its name.
    command: the command that the user gave.
    versions: versions of the packages.
    common: settings that all runs share, by path.
    own: other settings of each run, by its name and path.
    folder: directory of the figures.
  """

  title: str
  text: str
  facts: Sequence[str]
  findings: Sequence[Finding]
  drawn: Sequence[Drawn]
  table: Sequence[Sequence[str]]
  runs: Sequence[Sequence[str]]
  links: Mapping[str, str]
  failed: Mapping[str, str]
  command: str
  versions: str
  common: Mapping[str, Any]
  own: Mapping[str, Mapping[str, Any]]
  folder: Path

  def html(self) -> str:
    """Returns the page."""
    sections = {
      "failed": ("Failed runs", self._failed()),
      "claims": ("Claims", self._claims()),
      "figures": ("Figures", self._figures()),
      "errors": ("Final errors", self._errors()),
      "runs": ("Runs", _table(self.runs, self.links)),
      "origin": ("How it was made", self._origin()),
    }
    shown = {key: section for key, section in sections.items() if section[1]}
    contents = "".join(
      f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in shown.items()
    )
    body = "".join(
      f'<section id="{key}" class="{key}"><h2>{title}</h2>\n{text}</section>\n'
      for key, (title, text) in shown.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(self.title)}</h1>
<p>{html.escape(self.text)}</p>
<p class="faint">{html.escape(" ".join(self.facts))}</p>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
{body}</body></html>
"""

  def _failed(self) -> str:
    lines = "".join(
      f"<li><strong>{_link(name, self.links)}</strong>: "
      f'<span class="bad">{html.escape(error)}</span></li>\n'
      for name, error in self.failed.items()
    )
    return lines and f"<p>These runs have no result.</p>\n<ul>\n{lines}</ul>\n"

  def _claims(self) -> str:
    if not self.findings:
      return "<p>No claim can be checked yet, as no claim has all its runs.</p>\n"
    lines = "".join(
      f'<li><span class="badge {finding.verdict.replace(" ", "-")}">'
      f"{finding.verdict.capitalize()}</span><div>"
      f"<p>{html.escape(finding.claim.text)}</p>"
      f'<p class="faint">{_unbroken(html.escape(finding.text))}</p></div></li>\n'
      for finding in self.findings
    )
    plots = forest_plots(self.findings)
    return f'<ul class="claims">\n{lines}</ul>\n{plots}{_definitions(_VERDICTS)}'

  def _figures(self) -> str:
    return "".join(self._figure(drawn) for drawn in self.drawn)

  def _figure(self, drawn: Drawn) -> str:
    data = base64.b64encode((self.folder / f"{drawn.name}.png").read_bytes()).decode()
    return (
      f'<h3>{drawn.title}</h3>\n<figure><div class="scroll"><img alt="{drawn.title}" '
      f'src="data:image/png;base64,{data}"></div>\n'
      f"<figcaption>{drawn.caption}</figcaption></figure>\n"
    )

  def _errors(self) -> str:
    return _table(self.table) + _definitions(_TERMS) if self.table else ""

  def _origin(self) -> str:
    own = "\n\n".join(
      f"{html.escape(name)}\n{_settings(values)}" for name, values in self.own.items()
    )
    return (
      f"<pre>{html.escape(self.command)}</pre>\n<p>{html.escape(self.versions)}</p>\n"
      f"<details><summary>Settings of all runs</summary>"
      f"<pre>{_settings(self.common)}</pre></details>\n"
      f"<details><summary>Settings of each run</summary><pre>{own}</pre></details>\n"
    )


def _unbroken(text: str) -> str:
  """Keeps a percent sign on the same line as its number."""
  return text.replace(" %", "&nbsp;%")


def _definitions(terms: Mapping[str, str]) -> str:
  lines = "".join(
    f"<dt>{term}</dt><dd>{_unbroken(text)}</dd>\n" for term, text in terms.items()
  )
  return f"<dl>\n{lines}</dl>\n"


def _settings(values: Mapping[str, Any]) -> str:
  return html.escape("\n".join(f"config.{k} = {v!r}" for k, v in values.items()))


def _link(name: str, links: Mapping[str, str]) -> str:
  text = html.escape(name)
  if name not in links:
    return text
  return f'<a href="{urllib.parse.quote(links[name])}/">{text}</a>'


def _table(
  table: Sequence[Sequence[str]], links: Mapping[str, str] | None = None
) -> str:
  """Returns a table that scrolls on a narrow screen; first cells may be links."""
  header, *rows = table
  head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
  lines = "".join(
    f"<tr><td>{_link(row[0], links or {})}</td>"
    + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
    + "</tr>\n"
    for row in rows
  )
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
    f"<tbody>{lines}</tbody></table></div>\n"
  )
