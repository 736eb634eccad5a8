"""The table of a search, with a row per trial."""

from typing import TYPE_CHECKING, Any

from resnet_jax.experiments.sweeps.search import DIRECTIONS

if TYPE_CHECKING:
  import optuna


def ended_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
  """Returns the trials that ended, without those that another trial resumed."""
  trials = study.get_trials(deepcopy=False)
  continued = {trial.user_attrs.get("goes_on_from") for trial in trials}
  return [t for t in trials if t.state.is_finished() and t.number not in continued]


def tabulate(study: "optuna.Study", metric: str) -> list[list[str]]:
  """Returns a header and a row per trial, the best first and the failed last."""
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
