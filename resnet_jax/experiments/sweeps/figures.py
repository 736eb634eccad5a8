"""Figures of a search, as PNG files. They show the finished trials."""

import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resnet_jax.experiments.sweeps.search import DIRECTIONS
from resnet_jax.runtime.figure_style import (
  BOLD,
  EVALUATION,
  FAINT_TEXT,
  GRID,
  THIN,
  styled_figure,
)

if TYPE_CHECKING:
  import optuna

  Trials = Sequence[optuna.trial.FrozenTrial]

_WIDTH = 7.5  # In inches.
# The axis label of a metric, and the factor to its unit, where they are not its own.
_UNITS = {"top1": ("top-1 (%)", 100.0)}
_MAX_TICKS = 8


def draw_figures(study: "optuna.Study", out: Path, metric: str) -> list[str]:
  """Draws history, importances and parallel coordinates of the finished trials.

  Args:
    study: a study with at least one finished trial.
    out: directory.
    metric: a key of `DIRECTIONS`.

  Returns:
    Names of the files. There are no importances if all trials have the same result.
  """
  from optuna.trial import TrialState

  trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
  label, factor = _UNITS.get(metric, (metric, 1.0))
  values = [factor * (trial.value or 0.0) for trial in trials]
  best = max if DIRECTIONS[metric] == "maximize" else min
  _draw_history(out / "history.png", trials, values, label, best)
  _draw_parallel(out / "parallel.png", trials, values, label, best)
  if len(set(values)) == 1:
    return ["history.png", "parallel.png"]
  _draw_importances(out / "importances.png", study, label)
  return ["history.png", "parallel.png", "importances.png"]


def _draw_history(
  path: Path, trials: "Trials", values: Sequence[float], label: str, best: Any
) -> None:
  numbers = [trial.number for trial in trials]
  with styled_figure(_WIDTH, 3.4, layout="constrained") as figure:
    axes = figure.subplots()
    axes.plot(numbers, values, "o", color=EVALUATION, label="trial")
    axes.step(
      numbers,
      [*itertools.accumulate(values, best)],
      where="post",
      color=EVALUATION,
      linewidth=THIN,
      label="best so far",
    )
    axes.set(xlabel="trial", ylabel=label, title="Finished trials")
    axes.locator_params(axis="x", integer=True)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path)


def _draw_importances(path: Path, study: "optuna.Study", label: str) -> None:
  """Draws the importance of each setting, as Optuna estimates it."""
  from optuna.importance import get_param_importances

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    importances = get_param_importances(study)
  height = 1.2 + 0.3 * len(importances)
  with styled_figure(_WIDTH, height, layout="constrained") as figure:
    axes = figure.subplots()
    bars = axes.barh(range(len(importances)), [*importances.values()], color=EVALUATION)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    names = [_short(name, 40) for name in importances]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()  # The most important one comes first.
    axes.grid(visible=False)
    axes.set(xlabel=f"relative importance for {label.split(' (')[0]}", xlim=(0, 1.1))
    figure.savefig(path)


class _Axis(NamedTuple):
  """One vertical axis: positions of the trials and of the ticks, both in [0, 1]."""

  name: str
  places: list[float]
  ticks: list[tuple[float, str]]


def _draw_parallel(
  path: Path, trials: "Trials", values: Sequence[float], label: str, best: Any
) -> None:
  """Draws a line for each trial through its settings to its result."""
  from matplotlib.colors import LinearSegmentedColormap

  names = sorted(set.intersection(*(set(trial.params) for trial in trials)))
  result = _number_axis(label, values, min(values), max(values))
  axes_ = [*(_setting_axis(name, trials) for name in names), result]
  colors = LinearSegmentedColormap.from_list("result", [GRID, FAINT_TEXT])
  best_trial = values.index(best(values))
  with styled_figure(max(_WIDTH, 1.5 * len(axes_)), 4, layout="constrained") as figure:
    plot = figure.subplots()
    plot.set(xlim=(-0.9, len(axes_) - 0.5), ylim=(-0.05, 1.2))
    plot.axis("off")
    for i in range(len(trials)):
      is_best = i == best_trial
      quality = result.places[i] if best is max else 1 - result.places[i]
      plot.plot(
        [axis.places[i] for axis in axes_],
        color=EVALUATION if is_best else colors(quality),
        linewidth=BOLD if is_best else THIN,
        label=f"best: trial {trials[i].number}" if is_best else None,
        zorder=3 if is_best else 1 + quality,  # Good trials lie above bad ones.
      )
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for x, axis in enumerate(axes_):
      plot.axvline(x, 0.04, 0.84, color=FAINT_TEXT, linewidth=THIN, zorder=4)
      name = axis.name.replace(".", ".\n")
      plot.text(x, 1.06, name, ha="center", va="bottom", parse_math=False)
      is_last = axis is result  # No lines are to the right of it.
      for y, text in axis.ticks:
        plot.text(
          x + 0.04 if is_last else x - 0.04,
          y,
          text,
          ha="left" if is_last else "right",
          va="center",
          fontsize=8,
          bbox=box,
          zorder=5,
          parse_math=False,
        )
    figure.legend(loc="outside lower center")
    figure.savefig(path)


def _setting_axis(name: str, trials: "Trials") -> _Axis:
  from optuna.distributions import CategoricalDistribution

  values = [trial.params[name] for trial in trials]
  # Ranges may change between runs of a search, choices may not.
  distributions: list[Any] = [trial.distributions[name] for trial in trials]
  if isinstance(distributions[0], CategoricalDistribution):
    choices = distributions[0].choices
    places = [_fraction(i, 0, len(choices) - 1) for i in range(len(choices))]
    ticks = [(y, _short(str(c), 16)) for y, c in zip(places, choices, strict=True)]
    chosen = [places[choices.index(value)] for value in values]
    return _Axis(_short(name, 40), chosen, ticks[:: math.ceil(len(ticks) / _MAX_TICKS)])
  low = min(distribution.low for distribution in distributions)
  high = max(distribution.high for distribution in distributions)
  return _number_axis(name, values, low, high, distributions[0].log)


def _number_axis(
  name: str, values: Sequence[float], low: float, high: float, log: bool = False
) -> _Axis:
  from matplotlib.ticker import LogLocator, MaxNLocator

  def place(value: float) -> float:
    if log:
      return _fraction(math.log(value), math.log(low), math.log(high))
    return _fraction(value, low, high)

  def within(ticks: Sequence[float]) -> list[float]:
    return [float(tick) for tick in ticks if low <= tick <= high]

  ticks = within(MaxNLocator(5).tick_values(low, high))
  if log:
    ticks = within(LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(low, high))
    if len(ticks) > _MAX_TICKS:
      ticks = within(LogLocator(numticks=_MAX_TICKS).tick_values(low, high))
  if len(ticks) < 2:
    ticks = [low, high] if high > low else [low]
  places = [place(value) for value in values]
  return _Axis(_short(name, 40), places, [(place(t), f"{t:.6g}") for t in ticks])


def _fraction(value: float, low: float, high: float) -> float:
  return (value - low) / (high - low) if high > low else 0.5


def _short(text: str, length: int) -> str:
  """Cuts the middle out of a long text."""
  if len(text) <= length:
    return text
  half = (length - 1) // 2
  return f"{text[:half]}…{text[-half:]}"
