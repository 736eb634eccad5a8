"""What follows when evaluations stop improving: a lower learning rate, or the end.

All of it is a function of the evaluations so far. A state is saved before it is
evaluated, so its checkpoint cannot contain what follows from the evaluation. A resumed
run therefore reads its earlier evaluations again.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.config.plan import Plan
from resnet_jax.config.schema import OptimConfig
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import of_first_process
from resnet_jax.training.optimizer import PLATEAU_SCALE
from resnet_jax.training.state import TrainState
from resnet_jax.training.task_metrics import zero_metrics
from resnet_jax.training.tasks import Task


@dataclasses.dataclass
class Plateau:
  """Follows the metric that chooses the best checkpoint.

  `scale` follows PyTorch's `ReduceLROnPlateau` with mode "max", threshold mode "abs",
  and cooldown, minimum and eps 0. Early stopping follows Keras.

  Attributes:
    plan: says which evaluations count.
    metric: name of the metric; more is better.
    factor: factor of the learning rate at each decrease.
    patience: evaluations without a new best that do not decrease the rate yet;
      infinity never decreases it.
    stop_patience: evaluations without a new best that end the run; infinity never
      ends it.
    min_delta: by how much a new best must exceed the best so far.
    scale: factor of the learning rate.
    decay_steps: steps at which the scale decreased.
    best: the best metric so far.
    best_step: its step.
    waited: number of evaluations since then.
  """

  plan: Plan
  metric: str
  factor: float = 0.1
  patience: float = math.inf
  stop_patience: float = math.inf
  min_delta: float = 0.0
  scale: float = 1.0
  decay_steps: list[int] = dataclasses.field(default_factory=list)
  best: float = -math.inf
  best_step: int = 0
  waited: int = 0
  _bad: int = 0  # As `waited`, since the last decrease of the rate.

  @property
  def is_used(self) -> bool:
    """Whether evaluations have any effect."""
    return min(self.patience, self.stop_patience) < math.inf

  @property
  def should_stop(self) -> bool:
    """Whether the run ends now."""
    return self.waited >= self.stop_patience

  def add(self, step: int, results: Mapping[str, float]) -> None:
    """Takes the evaluation after `step` updates. Call it in the order of steps."""
    if not self.is_used or not self.plan.counts_at(step):
      return
    if results[self.metric] > self.best + self.min_delta:
      self.best, self.best_step = results[self.metric], step
      self.waited = self._bad = 0
      return
    self.waited += 1
    self._bad += 1
    if self._bad > self.patience:
      self.scale *= self.factor
      self.decay_steps.append(step)
      self._bad = 0

  def replay(
    self, records: Sequence[Mapping[str, Any]], split: str, step: int, is_due: bool
  ) -> None:
    """Takes the evaluations of a run that is resumed after `step` updates.

    Args:
      records: lines of `metrics.jsonl`; only those of process 0 are used.
      split: the version of the weights that chooses the best checkpoint.
      step: completed updates.
      is_due: whether the evaluation of `step` is still to come.

    Raises:
      UserError: an evaluation is missing.
    """
    if not self.is_used:
      return
    own = [record for record in records if record["split"] == split]
    found = {
      line["step"]: line for line in json.loads(of_first_process(json.dumps(own)))
    }
    for due in range(self.plan.eval_every, step + (not is_due), self.plan.eval_every):
      if due not in found:
        raise UserError(
          f"metrics.jsonl has no line of split {split!r} for step {due}, but a plateau "
          "and early stopping depend on all evaluations; put the line back, or begin a "
          "new run from these weights with config.init_from"
        )
      self.add(due, found[due])

  def apply(self, state: TrainState) -> TrainState:
    """Returns the state with the scale of the learning rate, if it has one."""
    if self.patience == math.inf:
      return state

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
      is_scale = getattr(path[-1], "key", None) == PLATEAU_SCALE
      scale = np.float32(self.scale)
      placed: jax.Array = jax.device_put(scale, leaf.sharding) if is_scale else leaf
      return placed

    opt_state = jax.tree_util.tree_map_with_path(put, state.opt_state)
    return state.replace(opt_state=opt_state)

  def describe_stop(self, step: int, has_trained: bool) -> list[str]:
    """Returns lines that say why the run ends early, after `step` updates.

    Args:
      step: completed updates.
      has_trained: whether it ends now; otherwise it had ended before.
    """
    more = f" by more than {self.min_delta:g}" if self.min_delta else ""
    verb = "stopped" if has_trained else "this run had stopped"
    count = f"{self.waited} evaluation{'s' * (self.waited > 1)}"
    lines = [
      f"{verb} early at step {step}: since step {self.best_step}, {count} in a row did "
      f"not exceed its {self.metric} of {self.best:.4g}{more}"
    ]
    if not has_trained:
      lines.append(
        "nothing is left to train; to train on, set a larger "
        "config.optim.early_stopping_patience, or 0"
      )
    return lines


def create_plateau(config: OptimConfig, plan: Plan, task: Task) -> Plateau:
  """Returns what the settings describe, before the first evaluation.

  Raises:
    UserError: evaluations matter, but the task does not report its `best_metric`.
  """
  plateau = Plateau(
    plan,
    task.best_metric,
    config.decay_factor,
    config.plateau_patience if config.has_plateau else math.inf,
    config.early_stopping_patience or math.inf,
    config.min_delta,
  )
  known = zero_metrics(task)
  if plateau.is_used and plateau.metric not in known:
    raise UserError(
      f"config.optim.schedule='plateau' and config.optim.early_stopping_patience need "
      f"the task's best_metric, {plateau.metric!r}, but its metrics are "
      f"{', '.join(known)}"
    )
  return plateau
