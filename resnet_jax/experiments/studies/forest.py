"""Forest plots: the differences of a study and their intervals, as HTML."""

import html
from collections.abc import Sequence

from resnet_jax.experiments.studies.outcomes import METRICS, Finding, with_minus

_ROW, _AXIS = 46, 34  # Heights in pixels.


def forest_plots(findings: Sequence[Finding]) -> str:
  """Returns HTML with one forest plot per unit of the differences.

  Positions are in percent of the width, so that a plot is as wide as the page and its
  texts keep their size. Its colours are CSS variables of the page.
  """
  units = dict.fromkeys(METRICS[finding.claim.metric].unit for finding in findings)
  return "".join(
    _plot([f for f in findings if METRICS[f.claim.metric].unit == unit], unit)
    for unit in units
  )


def _plot(findings: Sequence[Finding], unit: str) -> str:
  from matplotlib.ticker import MaxNLocator  # It takes a while to import.

  ends = [0.0]
  for finding in findings:
    ends += [finding.difference, -finding.claim.margin, *(finding.interval or ())]
  low, high = min(ends), max(ends)
  pad = 0.04 * (high - low) or 1.0
  low, high = low - pad, high + pad

  def place(value: float) -> str:
    return f"{100 * (value - low) / (high - low):.2f}%"

  bottom = _ROW * len(findings) + 4
  marks = []
  for tick in MaxNLocator(5).tick_values(low, high):
    if low <= tick <= high:
      name = with_minus(f"{tick:.6g}")
      marks += [
        _line("grid" if tick else "zero", place(tick), place(tick), 0, bottom),
        f'<text class="tick" x="{place(tick)}" y="{bottom + 18}">{name}</text>',
      ]
  for i, finding in enumerate(findings):
    claim, top = finding.claim, _ROW * i
    kind, y = finding.verdict.replace(" ", "-"), top + 32
    if claim.margin:
      x = place(-claim.margin)
      marks.append(_line("margin", x, x, y - 10, y + 10))
    name = f"{claim.higher} \N{MINUS SIGN} {claim.lower}: {METRICS[claim.metric].name}"
    marks.append(f'<text x="2" y="{top + 18}">{html.escape(name)}</text>')
    if finding.interval:
      left, right = map(place, finding.interval)
      marks.append(_line(kind, left, right, y, y))
      marks += [_line(kind, x, x, y - 5, y + 5) for x in (left, right)]
    x = place(finding.difference)
    marks.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="5"/>')
  lines = "\n".join(marks)
  caption = "Difference of the means" + f", in {unit}" * bool(unit)
  caption += ": first network minus second network."
  if any(finding.interval for finding in findings):
    caption += " Bars are 95&nbsp;% intervals."
  if any(finding.claim.margin for finding in findings):
    caption += " A dashed line is the margin that a claim allows."
  return (
    f'<figure><svg class="forest" role="img" aria-label="{caption}" width="100%" '
    f'height="{bottom + _AXIS}">\n{lines}\n</svg>'
    f"<figcaption>{caption}</figcaption></figure>\n"
  )


def _line(kind: str, x1: str, x2: str, y1: int, y2: int) -> str:
  return f'<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'
