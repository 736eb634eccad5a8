"""Learning-rate range test: trains briefly with a rate that grows at each step.

Smith (2017, arXiv:1506.01186, section 3.3) lets the rate grow linearly. An exponential
growth, the smoothed loss and the rule for the end are those of fastai's `lr_find`
(Howard and Gugger 2020, arXiv:2002.04688).
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from resnet_jax.config.schema import Config, OptimConfig
from resnet_jax.runs.metrics import summarize
from resnet_jax.runtime import figure_style
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.optimizer import batch_scale
from resnet_jax.training.transfer import load_start, start_from

_SMOOTHING = 0.9  # Share of the earlier steps in the smoothed loss.
_EXPLODED = 4.0  # A smoothed loss this many times the lowest one ends the test.
_MARGIN = 10.0  # Training for long needs a lower rate than the lowest loss had.


@dataclasses.dataclass(frozen=True)
class Curve:
  """The loss at each learning rate.

  Attributes:
    rates: `config.optim.learning_rate` of each step.
    losses: training loss of each step, before its update.
    smoothed: moving average of `losses`.
    has_exploded: whether the loss ended the test, and not the number of steps.
  """

  rates: tuple[float, ...]
  losses: tuple[float, ...]
  smoothed: tuple[float, ...]
  has_exploded: bool

  @property
  def suggestion(self) -> float | None:
    """A tenth of the rate at the lowest smoothed loss; None if the loss never fell."""
    lowest = int(np.argmin(self.smoothed)) if self.smoothed else 0
    return self.rates[lowest] / _MARGIN if lowest else None


def find_learning_rate(
  config: Config, *, lowest: float, highest: float, steps: int
) -> Curve:
  """Trains from the start that `config` names; nothing is saved.

  Args:
    config: the settings. Warmup, schedule and averages are replaced.
    lowest: first value of `config.optim.learning_rate`, > 0.
    highest: its last value.
    steps: number of updates, >= 2, from `lowest` to `highest`.
  """
  optim = dataclasses.replace(
    config.optim,
    schedule="step",
    decay_epochs=(),
    decay_steps=(),
    plateau_patience=OptimConfig().plateau_patience,
    early_stopping_patience=0,
    min_delta=0.0,
    warmup="linear",
    warmup_epochs=0.0,
    warmup_steps=0,
    ema_decay=0.0,
    swa_start_epochs=0.0,
    swa_start_steps=0,
  )
  config = dataclasses.replace(
    config, optim=optim, num_steps=steps, steps_per_call=1, precise_bn_batches=0
  )
  experiment = Experiment.create(config)
  growth = math.log(highest / lowest) / (steps - 1)
  peak = lowest * batch_scale(optim, config.batch_size)
  experiment.schedule = lambda step: peak * jnp.exp(growth * step)
  rates = [lowest * math.exp(growth * step) for step in range(steps)]
  return follow(rates, _train(experiment))


def _train(experiment: Experiment) -> Iterator[float]:
  """Yields the training loss of each step."""
  state, config = experiment.initial_state(), experiment.config
  data = experiment.train_data
  if source := config.init_from:
    args = source, experiment.model, data.image_shape, config.data
    start = load_start(*args, head=config.init_head, class_names=data.class_names)
    state = start_from(state, start)
  for _, feed, count in data.train_chunks(experiment.data_key, 0, experiment.plan):
    # The loss would change with the image size, so all steps have the last one.
    size = experiment.plan.sizes[-1]
    state, metrics = experiment.train_chunk(state, feed, count, size)
    yield summarize(metrics)["loss"]


def follow(rates: Sequence[float], losses: Iterable[float]) -> Curve:
  """Takes losses until their smoothed value explodes, or is not finite.

  Args:
    rates: the learning rate of each loss.
    losses: no more than needed are taken.
  """
  taken: list[float] = []
  smoothed: list[float] = []
  average, has_exploded = 0.0, False
  for loss in losses:
    average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
    value = average / (1 - _SMOOTHING ** (len(taken) + 1))  # As if it had begun at it.
    has_exploded = not value <= _EXPLODED * min(smoothed, default=math.inf)
    if not math.isfinite(value):
      break
    taken.append(loss)
    smoothed.append(value)
    if has_exploded:
      break
  return Curve(tuple(rates[: len(taken)]), tuple(taken), tuple(smoothed), has_exploded)


def write_csv(curve: Curve, path: Path) -> None:
  """Writes a line for each step."""
  with replacing(str(path)) as part, open(part, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["learning_rate", "loss", "smoothed_loss"])
    writer.writerows(zip(curve.rates, curve.losses, curve.smoothed, strict=True))


def draw(curve: Curve, path: Path, title: str) -> None:
  """Draws the loss over the learning rate; a dotted line is the suggestion."""
  with figure_style.styled_figure(6, 4) as figure, replacing(str(path)) as part:
    axes = figure.subplots()
    axes.plot(
      curve.rates, curve.losses, color=figure_style.TRAINING, lw=figure_style.THIN
    )
    axes.plot(
      curve.rates, curve.smoothed, color=figure_style.TEXT, lw=figure_style.BOLD
    )
    if curve.suggestion is not None:
      axes.axvline(curve.suggestion, color=figure_style.FAINT_TEXT, ls=":")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.set_ylim(top=2 * max(curve.smoothed[:1], default=1.0))  # Not the explosion.
    axes.set_title(title, parse_math=False)
    figure.savefig(part, format="png", bbox_inches="tight")
