"""What runs ended with: numbers of each, means and spreads, and what they show."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from resnet_jax.experiments.jobs import Job
from resnet_jax.experiments.studies.grids import Claim, Variant

# One run: the lines of `results.jsonl`.
Row = dict[str, Any]
# Of the updates, the last: with step decay those since it last fell. Their mean is what
# is called the training error, of augmented batches in train mode, as in the paper.
TRAIN_SHARE = 0.25


def row_of(job: Job, variant: Variant, seed: int) -> Row | None:
  """Returns what a job ended with; None if it did not end well."""
  result = job.result()
  if result is None:
    return None
  row: Row = {
    "label": variant.label,
    "series": variant.series,
    "depth": variant.depth,
    "seed": seed,
    "settings": dict(variant.settings),
    "workdir": str(job.workdir),
  }
  if "diverged" in result:
    classes = result["num_classes"]
    chance = 100 * (1 - 1 / classes)
    return row | {
      "diverged": result["diverged"],
      "train_error": chance,
      "test_error": chance,
      "seconds": result["seconds"],
      "device": result["device"],
    }
  records = job.metrics()
  return row | {
    "params": result["params"],
    "steps": result["steps"],
    **_training(records, result["steps"]),
    "test_error": 100 * (1 - result["top1"]),
    "test_loss": result["loss"],
    "seconds": result["seconds"],
    "device": result["device"],
    **({job.measure: result[job.measure]} if job.measure else {}),
  }


def _training(records: Sequence[Row], steps: int) -> Row:
  """Means over the last updates, each record weighted by those that it is of."""
  weights, errors, losses, before = [], [], [], 0
  for record in records:
    if record["split"] != "train":
      continue
    if record["step"] > (1 - TRAIN_SHARE) * steps:
      weights.append(record["step"] - before)
      errors.append(100 * (1 - record["top1"]))
      losses.append(record["loss"])
    before = record["step"]
  return {
    "train_error": statistics.fmean(errors, weights),
    "train_loss": statistics.fmean(losses, weights),
  }


def value_of(row: Row, metric: str) -> float | None:
  """Returns a number of a run.

  Args:
    row: of the run.
    metric: "train_error" or "test_error" in %; "response", the mean of the layers'
      standard deviations; "growth", log10 of the gradient's norm by the first layer
      over that by the last, before the first update.

  Returns:
    The number; None if the run diverged before it could be measured.
  """
  if metric == "response":
    responses: Mapping[str, float] | None = row.get("responses")
    return statistics.fmean(responses.values()) if responses else None
  if metric == "growth":
    if "gradients" not in row:
      return None
    first, *_, last = row["gradients"]["0"].values()
    return math.log10(first / last) if last else None
  value: float = row[metric]
  return value


def values_of(rows: Sequence[Row], metric: str) -> list[float]:
  """Returns `value_of` the runs that have one."""
  return [value for row in rows if (value := value_of(row, metric)) is not None]


class Spread(NamedTuple):
  """Mean and sample standard deviation (nan of one value) of `number` values."""

  mean: float
  deviation: float
  number: int

  def text(self, digits: int = 2) -> str:
    """Returns "mean ± deviation" with so many decimals; of one value, the value."""
    if self.number == 1:
      return f"{self.mean:.{digits}f}"
    return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


def spread(values: Sequence[float]) -> Spread:
  """Returns mean and spread of at least one value."""
  deviation = statistics.stdev(values) if len(values) > 1 else math.nan
  return Spread(statistics.fmean(values), deviation, len(values))


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """Groups runs by their variant, in order."""
  groups: dict[str, list[Row]] = {}
  for row in rows:
    groups.setdefault(row["label"], []).append(row)
  return groups


class Finding(NamedTuple):
  """A claim beside what was seen.

  Attributes:
    claim: what was claimed.
    verdict: "shown" (the 95 % interval of the difference, plus the claim's margin, is
      above 0), "seen" (the difference is, the interval is not, or there is one seed),
      "not seen".
    text: the numbers.
  """

  claim: Claim
  verdict: str
  text: str


def find(claims: Sequence[Claim], rows: Sequence[Row]) -> list[Finding]:
  """Checks the claims whose variants were run.

  Differences are of means over seeds; intervals are Welch's, 95 %.
  """
  groups = by_label(rows)
  findings = []
  for claim in claims:
    high, low = (
      values_of(groups.get(label, ()), claim.metric)
      for label in (claim.higher, claim.lower)
    )
    if not high or not low:
      continue
    difference = statistics.fmean(high) - statistics.fmean(low)
    unit, digits = (" points", 2) if claim.metric.endswith("_error") else ("", 4)
    metric = claim.metric.replace("_", " ")
    text = (
      f"{metric} of {claim.higher} {spread(high).text(digits)}, of {claim.lower} "
      f"{spread(low).text(digits)}: difference {difference:+.{digits}f}{unit}"
    )
    verdict = "seen" if difference + claim.margin > 0 else "not seen"
    if min(len(high), len(low)) > 1:
      lower, upper = _interval(high, low, difference)
      text += f", 95 % interval {lower:+.{digits}f} to {upper:+.{digits}f}"
      if lower + claim.margin > 0:
        verdict = "shown"
    else:
      text += "; one seed, so chance is not excluded"
    findings.append(Finding(claim, verdict, text))
  return findings


def _interval(
  high: Sequence[float], low: Sequence[float], difference: float
) -> Sequence[float]:
  """Welch's 95 % confidence interval of a difference of means."""
  if statistics.pstdev(high) == statistics.pstdev(low) == 0:
    return difference, difference
  from scipy import stats

  test = stats.ttest_ind(high, low, equal_var=False)
  interval: Sequence[float] = test.confidence_interval(0.95)
  return interval


def mean_curve(
  curves: Sequence[Mapping[int, float]],
) -> tuple[list[int], list[float], list[float], list[float]]:
  """Returns steps, and mean, lowest and highest of the curves at those all have."""
  steps = sorted(set.intersection(*(set(curve) for curve in curves)))
  values = [[curve[step] for curve in curves] for step in steps]
  means = [statistics.fmean(v) for v in values]
  return steps, means, [min(v) for v in values], [max(v) for v in values]
