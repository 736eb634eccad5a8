"""The progress line of a run on a terminal, and the time left."""

import time

from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from resnet_jax.config.plan import Plan

_ESTIMATE_AFTER = 100  # Steps; the first ones can be slower.


class ProgressLine:
  """The progress of a run. Rich draws it as one line of at most 80 columns.

  Attributes:
    activity: what the run does instead of training, such as "compiling"; "" if it
      trains.
    learning_rate: learning rate of the last update, if it is known.
  """

  def __init__(self, plan: Plan, start_step: int):
    """Starts to count the time of the run."""
    self.activity = "compiling"
    self.learning_rate: float | None = None
    self._plan, self._start = plan, start_step
    # The last step, and the last step at which the run was evaluated.
    self._step = self._evaluated = start_step
    self._opened = time.monotonic()
    self._began: float | None = None  # Start of training, after compilation.
    # Seconds of training, and all other seconds up to the end of the last evaluation.
    self._train_seconds = self._eval_seconds = 0.0
    self._has_estimated = self._has_ended = False
    self._spinner = Spinner("dots")

  def begin_training(self) -> None:
    """Records that the run trains from now on, or again after an evaluation."""
    self.activity = ""
    if self._began is None:
      self._began = time.monotonic()

  def trained(self, step: int, seconds: float) -> None:
    """Records training that ended at `step` and took `seconds`."""
    self._step = step
    self._train_seconds += seconds

  def evaluated(self) -> None:
    """Records the end of an evaluation of the last step."""
    self._evaluated = self._step
    if self._began is not None:
      seconds = time.monotonic() - self._began
      self._eval_seconds = max(0.0, seconds - self._train_seconds)

  def end(self) -> None:
    """Shows the total time from now on."""
    self.activity, self._has_ended = "", True

  def seconds_left(self) -> float | None:
    """Returns the seconds to the end of the run, or None before the first step.

    The time of evaluations is included as soon as there was one.
    """
    steps = self._step - self._start
    if not steps:
      return None
    train_seconds = (self._plan.num_steps - self._step) * self._train_seconds / steps
    evals_left = self._plan.evals_after(self._evaluated)
    evals = self._plan.evals_after(self._start) - evals_left
    return train_seconds + evals_left * self._eval_seconds / max(1, evals)

  def estimate(self) -> str:
    """Returns a line with the estimated total time; "" if too early or already told."""
    left = self.seconds_left()
    if self._has_estimated or self._step - self._start < _ESTIMATE_AFTER or not left:
      return ""
    self._has_estimated = True
    evals = self._plan.evals_after(self._evaluated)
    with_evals = (
      "evaluations included"
      if self._eval_seconds
      else f"without the {evals} evaluation{'s' * (evals > 1)}"
    )
    if self._start:
      return f"estimate: {in_words(left)} for the rest of the run, {with_evals}"
    whole = time.monotonic() - self._opened + left
    return f"estimate: {in_words(whole)} for the whole run, {with_evals}"

  def __rich__(self) -> Table:
    plan, step = self._plan, self._step
    elapsed = _clock(time.monotonic() - self._opened)
    left = self.seconds_left()
    if self._has_ended:
      times = f"{elapsed} in all"
    elif left is None:
      times = elapsed
    else:
      times = f"{elapsed}, {_clock(left)} left"
    place = f"epoch {step / plan.steps_per_epoch:.1f}"
    if self.learning_rate is not None:
      place += f" lr {self.learning_rate:.3g}"
    table = Table.grid(padding=(0, 1))
    for _ in range(6):
      table.add_column(no_wrap=True)
    table.add_row(
      "" if self._has_ended else self._spinner,
      ProgressBar(plan.num_steps, step, width=8),
      f"{100 * step // plan.num_steps} %",
      f"{step}/{plan.num_steps}",
      self.activity or place,
      times,
    )
    return table


def in_words(seconds: float) -> str:
  """Returns a time in its two largest units, such as "17 h 3 min"."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes} min"
  return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"
