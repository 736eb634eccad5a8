"""The plan of a run in steps: when to log, evaluate, save and decay.

Epochs are converted to steps, and periods computed, only here.
"""

import bisect
import dataclasses
import itertools

from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError

_TOO_MANY_STEPS = 2**31  # Steps are counted in int32.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The plan of a run; a step is one update, and `step` counts completed updates.

  Attributes:
    num_steps: length of the run, in steps.
    steps_per_epoch: number of full batches in the training set.
    steps_per_call: largest number of steps of one `train_chunk`.
    warmup_steps: length of warmup, in steps.
    decay_steps: steps at which the learning rate is multiplied by the decay factor.
    swa_start: number of updates before stochastic weight averaging; 0 disables it.
    log_every, eval_every, save_every: periods in steps. With `save_every` 0, the
      state is saved only at evaluations and before the image size changes.
    sizes: short sides of the training images, in pixels, one for each part of the run;
      0 is their own size.
    size_steps: the steps at which the second and later parts begin.
    may_stop_early: whether the run may end at any evaluation. Training metrics are then
      logged at each of them.
    call_ends: further steps at which a call of the compiled step ends.
  """

  num_steps: int
  steps_per_epoch: int
  steps_per_call: int
  warmup_steps: int
  decay_steps: tuple[int, ...]
  log_every: int
  eval_every: int
  save_every: int
  swa_start: int = 0
  sizes: tuple[int, ...] = (0,)
  size_steps: tuple[int, ...] = ()
  may_stop_early: bool = False
  call_ends: tuple[int, ...] = ()

  @classmethod
  def create(cls, config: Config, num_train_examples: int) -> "Plan":
    """Converts epochs to steps.

    Raises:
      ValueError: a batch is larger than the training set, there are 2**31 steps or
        more, two boundaries fall on the same step, warmup does not end before the first
        boundary, stochastic weight averaging does not start before the last step, or
        there are fewer steps than image sizes.
    """
    steps_per_epoch = num_train_examples // config.batch_size
    if steps_per_epoch == 0:
      raise UserError(
        f"config.batch_size={config.batch_size} must be at most the number of "
        f"training images, {num_train_examples}"
      )

    def steps(epochs: float) -> int:
      return round(min(epochs * steps_per_epoch, _TOO_MANY_STEPS))

    def period(in_steps: int, in_epochs: float, default: int) -> int:
      # A fraction of an epoch is rounded, but to one step at least.
      return in_steps or (max(1, steps(in_epochs)) if in_epochs else default)

    optim = config.optim
    num_steps = config.num_steps or max(1, steps(config.num_epochs))
    if num_steps >= _TOO_MANY_STEPS:
      raise UserError(
        f"config.num_epochs={config.num_epochs} must be fewer than 2**31 steps, at "
        f"{steps_per_epoch} steps an epoch"
      )
    warmup_steps = optim.warmup_steps or steps(optim.warmup_epochs)
    decay_steps = optim.decay_steps or tuple(map(steps, optim.decay_epochs))
    limits = 0, *decay_steps, _TOO_MANY_STEPS
    if any(a >= b for a, b in itertools.pairwise(limits)):
      name = "decay_steps" if optim.decay_steps else "decay_epochs"
      raise UserError(
        f"config.optim.{name}={getattr(optim, name)} are steps {decay_steps} at "
        f"{steps_per_epoch} steps an epoch; they must be increasing, > 0 and < 2**31"
      )
    name = "warmup_steps" if optim.warmup_steps else "warmup_epochs"
    if decay_steps and warmup_steps >= decay_steps[0]:
      raise UserError(
        f"config.optim.{name}={getattr(optim, name)} ends at step {warmup_steps}; it "
        f"must end before the first decay of the learning rate at step {decay_steps[0]}"
      )
    sizes = config.augment.progressive_sizes or (0,)
    if num_steps < len(sizes):
      raise UserError(
        f"config.augment.progressive_sizes={sizes} needs a run of at least "
        f"{len(sizes)} steps, one for each size; this run has {num_steps}"
      )
    swa_start = period(optim.swa_start_steps, optim.swa_start_epochs, 0)
    if swa_start >= num_steps:
      name = "swa_start_steps" if optim.swa_start_steps else "swa_start_epochs"
      raise UserError(
        f"config.optim.{name}={getattr(optim, name)} is step {swa_start}; it must be "
        f"before the end of the run at step {num_steps}"
      )
    return cls(
      num_steps=num_steps,
      steps_per_epoch=steps_per_epoch,
      steps_per_call=config.steps_per_call,
      warmup_steps=warmup_steps,
      decay_steps=decay_steps,
      log_every=period(
        config.log_every_steps, config.log_every_epochs, min(50, steps_per_epoch)
      ),
      eval_every=period(
        config.eval_every_steps, config.eval_every_epochs, steps_per_epoch
      ),
      save_every=config.checkpoint.every_steps,
      swa_start=swa_start,
      may_stop_early=optim.early_stopping_patience > 0,
      sizes=sizes,
      size_steps=tuple(num_steps * i // len(sizes) for i in range(1, len(sizes))),
    )

  def log_at(self, step: int) -> bool:
    """Whether training metrics are written after `step` updates."""
    is_end = step == self.num_steps or (self.may_stop_early and self.eval_at(step))
    return is_end or step % self.log_every == 0

  def eval_at(self, step: int) -> bool:
    """Whether the model is evaluated after `step` updates."""
    return step % self.eval_every == 0 or step == self.num_steps

  def counts_at(self, step: int) -> bool:
    """Whether the evaluation after `step` updates counts for a plateau or early stop.

    Evaluations during warmup do not count. The evaluation of the last step counts only
    if it is regular: a longer run, which may resume this one, would not have it.
    """
    return step > self.warmup_steps and step % self.eval_every == 0

  def evals_after(self, step: int) -> int:
    """Returns how many evaluations are still to come after `step` updates."""
    regular = self.num_steps // self.eval_every - step // self.eval_every
    return regular + (step < self.num_steps and self.num_steps % self.eval_every > 0)

  def save_at(self, step: int) -> bool:
    """Whether the state is saved after `step` updates.

    It is saved before the image size changes, so that a signal during the compilation
    for the new size loses nothing.
    """
    is_due = self.save_every > 0 and step % self.save_every == 0
    return self.eval_at(step) or is_due or self.resizes_at(step)

  def resizes_at(self, step: int) -> bool:
    """Whether the update after `step` updates is the first one at its image size."""
    return step in self.size_steps

  def size_at(self, step: int) -> int:
    """Returns the image size of the update after `step` updates, as in `sizes`."""
    return self.sizes[bisect.bisect_right(self.size_steps, step)]

  @property
  def longest_call(self) -> int:
    """Steps of the longest call, or more with `size_steps` or `call_ends`.

    Without them, it is the first call, as all periods start at step 0.
    """
    return dataclasses.replace(self, size_steps=(), call_ends=()).call_end(0)

  def call_end(self, step: int) -> int:
    """Returns the step at which a call that starts after `step` updates ends.

    A call does not cross the end of an epoch, so that it needs only one shuffle. It
    does not cross a step at which something is due, or the image size changes.
    """
    periods = [self.log_every, self.eval_every, self.steps_per_epoch]
    if self.save_every:
      periods.append(self.save_every)
    due = [(step // period + 1) * period for period in periods]
    due += [end for end in (*self.size_steps, *self.call_ends) if end > step]
    return min(step + self.steps_per_call, self.num_steps, *due)
