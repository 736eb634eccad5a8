"""What a search leaves: a table, figures, and its best settings."""

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_jax.experiments.sweeps.search import DIRECTIONS

if TYPE_CHECKING:
  import optuna


def ended_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
  """Returns the trials that ended, without those that went on as another one."""
  trials = study.get_trials(deepcopy=False)
  continued = {trial.user_attrs.get("goes_on_from") for trial in trials}
  return [t for t in trials if t.state.is_finished() and t.number not in continued]


def tabulate(study: "optuna.Study", metric: str) -> list[list[str]]:
  """Returns a line for each trial, the best first and the failed last; a header."""
  from optuna.trial import TrialState

  trials = ended_trials(study)
  sign = -1 if DIRECTIONS[metric] == "maximize" else 1
  order = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL

  def place(trial: "optuna.trial.FrozenTrial") -> tuple[int, float, int]:
    return order.index(trial.state), sign * (trial.value or 0), trial.number

  paths = sorted({path for trial in trials for path in trial.params})
  table = [["trial", "state", metric, *paths, "seconds", "error"]]
  for trial in sorted(trials, key=place):
    attributes = trial.user_attrs
    value = "" if trial.value is None else f"{trial.value:.4f}"
    params = (_short(trial.params.get(path, "")) for path in paths)
    seconds, error = attributes.get("seconds", ""), attributes.get("error", "")
    state = trial.state.name.lower()
    table.append([str(trial.number), state, value, *params, str(seconds), error])
  return table


def _short(value: Any) -> str:
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_figures(study: "optuna.Study", out: Path) -> list[str]:
  """Draws Optuna's history, importances and parallel coordinates as PNG files.

  Returns:
    Their names; importances need two trials that ended, with different values.
  """
  import matplotlib
  from optuna.visualization import matplotlib as plots

  matplotlib.use("Agg")
  drawn = []
  for name, plot in (
    ("history", plots.plot_optimization_history),
    ("importances", plots.plot_param_importances),
    ("parallel", plots.plot_parallel_coordinate),
  ):
    with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):
      warnings.simplefilter("ignore")
      figure: Any = plot(study).figure
      for axes in figure.axes:
        if axes.get_yscale() == "linear":  # Its labels may be values with a $.
          for label in axes.get_yticklabels():
            label.set_parse_math(False)
      figure.set_size_inches(9, 5)
      figure.savefig(out / f"{name}.png", dpi=120, bbox_inches="tight")
      drawn.append(f"{name}.png")
  return drawn
