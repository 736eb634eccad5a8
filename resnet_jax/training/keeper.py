"""Saves the states of a run and evaluates them."""

import dataclasses
from collections.abc import Sequence

import jax

from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.metric_writer import DIVERGENCE_ADVICE, MetricWriter
from resnet_jax.runtime.signals import StopRequest
from resnet_jax.training import steps
from resnet_jax.training.clock import Clock
from resnet_jax.training.evaluator import evaluate
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.hooks import Hook
from resnet_jax.training.plateau import Plateau
from resnet_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Keeper:
  """Saves states and evaluates them."""

  experiment: Experiment
  writer: MetricWriter
  store: CheckpointStore
  stop: StopRequest
  plateau: Plateau
  hooks: Sequence[Hook]
  clock: Clock

  def save(self, state: TrainState, step: int) -> None:
    """Saves a state after `step` updates, if it is new and finite."""
    if not step:
      return
    self.writer.flush()
    with self.clock.timed("saving"):
      self.writer.send()
      self._check_finite(state, step)
      *_, last = state.versions.values()
      is_average = last["params"] is not state.params
      if self.store.save(step, state, last if is_average else None):
        for hook in self.hooks:
          hook.on_checkpoint(step, state)

  def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
    """Evaluates a saved state and its EMA, if any; adds the result to its checkpoint.

    Returns:
      The metrics of the EMA if there is one, else those of the parameters.

    Raises:
      Stopped: a signal asked the run to stop; the resumed run does the evaluation.
    """
    found = {}
    self.writer.begin_evaluation()
    with self.clock.timed("evaluation"):
      with self.stop.interrupting(step):
        for name, variables in state.versions.items():
          evaluated = self.experiment.refresh(variables)
          found[name] = results = evaluate(self.experiment, evaluated)
      for name, values in found.items():
        self.writer.evaluation(step, values, name)
    with self.clock.timed("saving"):
      is_refreshed = self.experiment.config.precise_bn_batches > 0
      self.store.add_evaluation(step, results, evaluated if is_refreshed else None)
      self.plateau.add(step, results)
      self.writer.draw_curves()
    return results

  def _check_finite(self, state: TrainState, step: int) -> None:
    """Raises `FloatingPointError` if parameters or statistics are not finite."""
    if not _all_finite(state.variables):
      raise FloatingPointError(
        f"the parameters are no longer finite after step {step}"
        f"{self.writer.describe_rate(step)}; {DIVERGENCE_ADVICE}"
      )


_all_finite = jax.jit(steps.all_finite)
