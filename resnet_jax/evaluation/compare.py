"""Compares runs: settings, scores, curves, and where their predictions disagree."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from scipy.stats import binomtest

from resnet_jax.config.fields import flatten
from resnet_jax.evaluation.scores import TEXTS, score_rows
from resnet_jax.runs import run_dir
from resnet_jax.runs.metric_lines import read_records
from resnet_jax.runtime import figure_style
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.buckets import storage_path
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.tables import Table

_MOST_MARKERS = 30
_COLORS = (figure_style.RESIDUAL, figure_style.PLAIN, *figure_style.OTHERS)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run directory says.

  Attributes:
    name: as the user wrote it.
    settings: values by path.
    records: lines of metrics.jsonl.
    scores: scores of its report; without a report, those of its last evaluation.
    intervals: of some scores.
    predictions: path of an image -> label and prediction, from its report; {} without.
  """

  name: str
  settings: dict[str, object]
  records: list[dict[str, Any]]
  scores: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  predictions: dict[str, tuple[str, str]]

  @classmethod
  def read(cls, workdir: str) -> "Run":
    """Reads a run; none of its code runs.

    Raises:
      NotFoundError: there is no run.
      UserError: a file is damaged.
    """
    path = storage_path(workdir)
    config = run_dir.load_run_config(workdir, trust_code=True, used=())
    records = read_records(workdir)
    try:
      kept = json.loads("".join(_lines(path / "report" / "metrics.json")) or "{}")
      # Other predictions are not just right or wrong.
      has_classes = config.data.labels in ("class", "classes")
      file = path / "report" / "predictions.csv"
      rows = csv.DictReader(_lines(file) if has_classes else [])
      predictions = {row["path"]: (row["label"], row["prediction"]) for row in rows}
      scores = kept.get("scores", {})
      if not scores:
        scores = next((x for x in reversed(records) if x["split"] != "train"), {})
      intervals = {
        name: (float(low), float(high))
        for name, (low, high) in kept.get("intervals_95", {}).items()
      }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
      raise UserError(f"{path / 'report'} is damaged: {error!r:.100}") from error
    return cls(workdir, flatten(config), records, scores, intervals, predictions)


def _lines(path: epath.Path) -> list[str]:
  try:
    text: str = path.read_text(encoding="utf-8")
  except FileNotFoundError:
    return []
  return text.splitlines(keepends=True)


def read_runs(workdirs: Sequence[str]) -> list[Run]:
  """Reads at least two runs; see `Run.read`."""
  if len(workdirs) < 2:
    raise UserError("compare needs at least two runs: resnet-jax compare RUN RUN")
  return [Run.read(workdir) for workdir in workdirs]


def settings_table(runs: Sequence[Run]) -> Table:
  """Returns the settings that differ, the header first."""
  paths = dict.fromkeys(path for run in runs for path in run.settings)
  rows = [[path, *(repr(run.settings.get(path)) for run in runs)] for path in paths]
  different = [row for row in rows if len({*row[1:]}) > 1]
  return [["setting", *(run.name for run in runs)], *different]


def scores_table(runs: Sequence[Run]) -> Table:
  """Returns the scores side by side, with their intervals, the header first."""
  columns = [
    {
      text: f"{value} ({ends})" if ends else value
      for text, value, ends in score_rows(run.scores, run.intervals)[1:]
    }
    for run in runs
  ]
  rows = [
    [text, *(column.get(text, "") for column in columns)]
    for text in TEXTS.values()
    if any(text in column for column in columns)
  ]
  return [["score", *(run.name for run in runs)], *rows]


@dataclasses.dataclass(frozen=True)
class Disagreement:
  """The predictions of two runs for the same images.

  Attributes:
    both: images that both predict right.
    first, second: images that only the first, or only the second predicts right.
    neither: images that both predict wrong.
    p_value: of McNemar's exact test: the probability of so large a difference between
      `first` and `second` if the networks were equally good.
    images: path, label, and the two predictions, where they differ.
  """

  both: int
  first: int
  second: int
  neither: int
  p_value: float
  images: Table


def disagreement(first: Run, second: Run) -> Disagreement | None:
  """Compares the predictions of two reports; None if a run has no report.

  Raises:
    UserError: the reports are of other images.
  """
  if not first.predictions or not second.predictions:
    return None
  mine, others = first.predictions, second.predictions
  if mine.keys() != others.keys() or any(mine[x][0] != others[x][0] for x in mine):
    raise UserError(
      f"the reports of {first.name} and {second.name} are of other images; write both "
      "with the same --dataset and --split by `resnet-jax evaluate --report`"
    )
  counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
  images = []
  for path, (label, prediction) in mine.items():
    other = others[path][1]
    counts[prediction == label, other == label] += 1
    if prediction != other:
      images.append([path, label, prediction, other])
  only = counts[True, False], counts[False, True]
  p_value = binomtest(only[0], sum(only)).pvalue if any(only) else 1.0
  return Disagreement(
    counts[True, True], *only, counts[False, False], float(p_value), images
  )


def draw(path: Path, runs: Sequence[Run]) -> None:
  """Draws the curves of runs over each other: bold evaluation, thin training."""
  metric = "top1" if all("top1" in run.scores for run in runs) else "loss"
  with (
    figure_style.styled_figure(6.4, 4.2, layout="constrained") as figure,
    replacing(str(path)) as part,
  ):
    axes = figure.add_subplot()
    for i, run in enumerate(runs):
      color = _COLORS[i % len(_COLORS)]
      for is_training, width in ((True, figure_style.THIN), (False, figure_style.BOLD)):
        rows = [
          row
          for row in run.records
          if (row["split"] == "train") == is_training and metric in row
        ]
        values = [
          100 * (1 - row[metric]) if metric == "top1" else row[metric] for row in rows
        ]
        axes.plot(
          [row["epoch"] for row in rows],
          values,
          color=color,
          lw=width,
          alpha=0.5 if is_training else 1,
          marker="o" if len(rows) <= _MOST_MARKERS and not is_training else None,
          ms=4,
          label="_" if is_training else f"{i + 1}: {run.name}",
        )
    axes.set(xlabel="epoch", ylabel="top-1 error (%)" if metric == "top1" else "loss")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    legend = axes.legend()
    for text in legend.get_texts():
      text.set_parse_math(False)
    figure.savefig(part, format="png")
