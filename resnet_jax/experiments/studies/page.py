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

# Colours for a light screen and for print, then for a dark screen. On both, the figures
# have a white background.
_STYLE = """
:root { color-scheme: light; --text: #1d1d1f; --faint: #5f6368; --page: #fff;
  --box: #f5f6f8; --edge: #d8dbe0; --link: #0b57d0; --shown: #00704f; --seen: #8a5a00;
  --not-seen: #5f6368; --bad: #b3261e; --on-badge: #fff }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --text: #e6e6e9; --faint: #a3a7ad; --page: #16171a;
    --box: #212327; --edge: #3b3e44; --link: #8ab4f8; --shown: #4cc79b;
    --seen: #e3b341; --not-seen: #a3a7ad; --bad: #f2867c; --on-badge: #16171a } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; color: var(--text); background: var(--page) }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--edge) }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem }
a { color: var(--link) }
.faint, figcaption { color: var(--faint); font-size: .875rem }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none;
  padding: .6rem .9rem; margin: 1.2rem 0; background: var(--box); border-radius: 8px }
.claims { list-style: none; padding: 0 }
.claims li { display: grid; grid-template-columns: 5.5rem 1fr; gap: 0 .9rem;
  padding: .7rem 0; border-bottom: 1px solid var(--edge) }
.claims li p { margin: 0 }
.badge { align-self: start; border-radius: 99px; padding: .1rem 0; text-align: center;
  font-size: .8rem; font-weight: 600; color: var(--on-badge);
  print-color-adjust: exact }
.badge.shown { background: var(--shown) }
.badge.seen { background: var(--seen) }
.badge.not-seen { background: var(--not-seen) }
.failed { border-left: 4px solid var(--bad); padding: .1rem 0 .1rem 1rem }
.failed h2 { margin-top: .4rem }
.failed h2, .bad { color: var(--bad) }
.failed li { overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem;
  font-size: .875rem }
dt { font-weight: 600 }
dd { margin: 0; color: var(--faint) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--edge); padding: .35rem .9rem;
  text-align: right; white-space: nowrap }
th { font-size: .875rem }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
figure { margin: 1rem 0 }
figure img { display: block; width: 100%; min-width: 36rem; max-width: 900px;
  background: #fff; border: 1px solid var(--edge); border-radius: 8px; padding: .5rem }
figcaption { margin-top: .4rem }
.forest { font-size: 13px; overflow: visible }
.forest text { fill: var(--text); stroke: var(--page); stroke-width: 4;
  paint-order: stroke }
.forest .tick { fill: var(--faint); text-anchor: middle }
.forest line { stroke: var(--edge) }
.forest .zero { stroke: var(--text) }
.forest .margin { stroke: var(--text); stroke-dasharray: 3 3 }
.forest .shown { stroke: var(--shown); fill: var(--shown); stroke-width: 2 }
.forest .seen { stroke: var(--seen); fill: var(--seen); stroke-width: 2 }
.forest .not-seen { stroke: var(--not-seen); fill: var(--not-seen); stroke-width: 2 }
pre { background: var(--box); padding: .8rem; overflow-x: auto; border-radius: 8px;
  font-size: 13px }
summary { cursor: pointer; color: var(--link) }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem }
  .claims li { grid-template-columns: 1fr; gap: .3rem } .badge { width: 5.5rem } }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt } nav, details { display: none }
  figure img { min-width: 0 } figure, .claims li, tr { break-inside: avoid }
  h2, h3 { break-after: avoid } .scroll { overflow: visible } }
"""


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
<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head><body>
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
