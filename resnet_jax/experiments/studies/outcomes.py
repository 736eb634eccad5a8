"""The results of runs: numbers, means and spreads, and verdicts on the claims."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from resnet_jax.experiments.jobs import Job
from resnet_jax.experiments.studies.study import Claim, Variant

# One run: a line of `results.jsonl`.
Row = dict[str, Any]
# The training error is the mean over this last fraction of the updates, on augmented
# batches in train mode, as in the paper. With step decay, these are the updates after
# the last drop of the learning rate.
TRAIN_SHARE = 0.25


def row_of(job: Job, variant: Variant, seed: int) -> Row | None:
  """Returns the results of a job; None if it has none."""
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
  """Returns means over the last updates, weighting each record by its updates."""
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
    row: results of the run.
    metric: "train_error" or "test_error" in %. "response" is the mean of the layers'
      standard deviations. "growth" is log10(a / b) before the first update, where a and
      b are the norms of the gradients of the first and of the last layer.

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
  """Returns `value_of` for each run that has the metric."""
  return [value for row in rows if (value := value_of(row, metric)) is not None]


def with_minus(number: str) -> str:
  """Returns a number with a minus sign in place of its hyphen."""
  return number.replace("-", "\N{MINUS SIGN}")


class Spread(NamedTuple):
  """Mean and sample standard deviation of `number` values; nan for a single value."""

  mean: float
  deviation: float
  number: int

  def text(self, digits: int = 2) -> str:
    """Returns "mean ± deviation"; for a single value, only the value."""
    text = with_minus(f"{self.mean:.{digits}f}")
    return text if self.number == 1 else f"{text} ± {self.deviation:.{digits}f}"


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
  """A claim and what the runs say about it.

  Attributes:
    claim: the claim.
    verdict: "shown", "seen" or "not seen". It is "shown" if the lower end of the 95 %
      interval plus the claim's margin is above 0. Otherwise, and if there is only one
      seed, it is "seen" if the difference plus the margin is above 0.
    difference: mean of `claim.higher` minus mean of `claim.lower`.
    interval: ends of the 95 % interval of the difference; None with only one seed.
    text: the numbers, in one line.
  """

  claim: Claim
  verdict: str
  difference: float
  interval: tuple[float, float] | None
  text: str


class Metric(NamedTuple):
  """How a metric of `value_of` is written.

  Attributes:
    name: name of the metric in a sentence.
    unit: unit of a difference.
    digits: number of decimals.
  """

  name: str
  unit: str
  digits: int


METRICS = {
  "train_error": Metric("training error", "percentage points", 2),
  "test_error": Metric("test error", "percentage points", 2),
  "response": Metric("mean response", "", 4),
  "growth": Metric("growth of the gradient towards the first layer", "powers of 10", 2),
}


def find(claims: Sequence[Claim], rows: Sequence[Row]) -> list[Finding]:
  """Checks the claims whose networks were all trained.

  Differences are between means over seeds. The intervals are Welch's.
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
    interval = None
    verdict = "seen" if difference + claim.margin > 0 else "not seen"
    if min(len(high), len(low)) > 1:
      interval = _interval(high, low, difference)
      if interval[0] + claim.margin > 0:
        verdict = "shown"
    text = _sentence(claim, spread(high), spread(low), difference, interval)
    findings.append(Finding(claim, verdict, difference, interval, text))
  return findings


def _sentence(
  claim: Claim,
  high: Spread,
  low: Spread,
  difference: float,
  interval: tuple[float, float] | None,
) -> str:
  name, unit, digits = METRICS[claim.metric]
  size = with_minus(f"{difference:+.{digits}f}") + f" {unit}" * bool(unit)
  if interval is None:
    end = "; there is one seed only, so it may be chance"
  else:
    ends = (with_minus(f"{value:+.{digits}f}") for value in interval)
    end = f", 95 % interval {' to '.join(ends)}"
  return (
    f"{name.capitalize()}: {high.text(digits)} ({claim.higher}) and {low.text(digits)} "
    f"({claim.lower}); difference {size}{end}."
  )


def _interval(
  high: Sequence[float], low: Sequence[float], difference: float
) -> tuple[float, float]:
  """Returns Welch's 95 % confidence interval of a difference of means."""
  if statistics.pstdev(high) == statistics.pstdev(low) == 0:
    return difference, difference
  from scipy import stats

  test = stats.ttest_ind(high, low, equal_var=False)
  interval = test.confidence_interval(0.95)
  return float(interval.low), float(interval.high)


def mean_curve(
  curves: Sequence[Mapping[int, float]],
) -> tuple[list[int], list[float], list[float], list[float]]:
  """Returns the steps that all curves share, with mean, minimum and maximum there."""
  steps = sorted(set.intersection(*(set(curve) for curve in curves)))
  values = [[curve[step] for curve in curves] for step in steps]
  means = [statistics.fmean(v) for v in values]
  return steps, means, [min(v) for v in values], [max(v) for v in values]
