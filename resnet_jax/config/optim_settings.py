"""The settings of the optimiser and of the learning rate.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses
from collections.abc import Mapping

from resnet_jax.config import allowed


@dataclasses.dataclass(slots=True)
class OptimConfig:
  """Optimiser and learning rate.

  Attributes:
    name: "sgd"; "adam" (weight decay as an L2 penalty, as in PyTorch); "adamw"
      (decoupled weight decay); "lars" (You et al. 2017) and "lamb" (You et al. 2020)
      for batches of thousands of images; "muon" (Jordan et al. 2024), which is Muon for
      convolutions and Adam for all else, with decoupled weight decay; or
      "schedule_free_sgd" (Defazio et al. 2024), which evaluates an average of all
      steps instead of decreasing the learning rate.
    learning_rate: peak learning rate, which is reached at the end of warmup. "muon"
      takes the rates of "adamw", such as 0.001. "schedule_free_sgd" takes rates 10 to
      50 times as large as "sgd".
    factory: import path of your own optimiser, "package.module:function". The function
      takes the schedule (step -> learning rate) and returns an
      `optax.GradientTransformation`. `name`, `momentum`, `weight_decay` and `clip_norm`
      are then unused.
    learning_rate_multipliers: factors of the learning rate for groups of parameters,
      such as {"head": 10, "stem": 0.1} in Python, or head=10,stem=0.1 on the command
      line. The groups are those of `freeze`, without body.
    layer_decay: a group at distance d from the head has its learning rate multiplied by
      layer_decay**d (discriminative fine-tuning, Howard & Ruder 2018, section 3.2), in
      addition to `learning_rate_multipliers`. 1 disables it.
    reference_batch_size: batch size for which `learning_rate` is given. The rate is
      multiplied by batch_size / reference_batch_size (Goyal et al. 2017); 0 does not
      scale it.
    batch_scaling: "linear", or "sqrt" to scale by the square root of that ratio, which
      is common with Adam and LAMB.
    momentum: momentum of SGD, LARS and Muon. Muon's authors use 0.95, with `nesterov`.
      "schedule_free_sgd" computes gradients at momentum * average + (1 - momentum) *
      last parameters; 0.9 is the default of its authors.
    nesterov: use Nesterov's momentum in SGD, LARS and Muon.
    weight_decay: coefficient of the L2 penalty, or of the decoupled decay.
    decay_all: apply weight decay to biases and batch-norm parameters too, as the paper
      did. Without it, weight decay applies to kernels only.
    schedule: after warmup, "step" multiplies the rate by `decay_factor` at each
      boundary; "cosine" decreases it to 0 at the last step; "poly" too, as (1 - t)^0.9
      with t from 0 to 1; "plateau" multiplies it by `decay_factor` when the evaluations
      stop improving, see `plateau_patience`.
    decay_epochs, decay_steps: boundaries of "step", counted from the start of training,
      in epochs or in steps.
    decay_factor: factor of the learning rate at each boundary or plateau.
    plateau_patience: "plateau" decreases the rate after more than this number of
      evaluations in a row without a new best metric, as PyTorch's `ReduceLROnPlateau`
      does. The metric is the one that chooses the best checkpoint, such as top-1, of
      the EMA if there is one. Evaluations during warmup do not count.
    early_stopping_patience: end the run after this number of evaluations in a row
      without a new best metric, with any schedule; 0 disables it. Evaluations during
      warmup do not count.
    min_delta: a metric is a new best only if it exceeds the best one by more than this,
      for "plateau" and for early stopping.
    warmup: "linear" increases the rate from `warmup_learning_rate` to `learning_rate`;
      "constant" keeps it at `warmup_learning_rate`; "head" trains the head alone, at
      `learning_rate`, and leaves all other parameters as they are.
    warmup_epochs, warmup_steps: length of warmup, in epochs or in steps.
    warmup_learning_rate: learning rate at the first step of warmup.
    label_smoothing: probability that is spread evenly over all classes.
    sam_rho: sharpness-aware minimisation (SAM, Foret et al. 2020): each update uses the
      gradient at parameters that are moved by this L2 distance to a higher loss, such
      as 0.05; 0 disables it. A step computes two gradients and takes twice as long.
    accumulate: number of parts into which a batch is split. They are computed one after
      the other, which saves memory. `batch_size` is still the size of the whole batch.
    ema_decay: EMA decay per update, of parameters and batch-norm statistics; 0 disables
      it. The EMA weights are evaluated too, and are saved as the best.
    swa_start_epochs, swa_start_steps: start of stochastic weight averaging (SWA,
      Izmailov et al. 2018), in epochs or in steps. The mean of the parameters at this
      step and after each further epoch is evaluated too, in place of the EMA; 0
      disables it. `precise_bn_batches` re-estimates its batch-norm statistics.
    clip_norm: largest global norm of the gradient; 0 does not clip.
    shard_state: split the optimiser state over the devices to save memory (ZeRO-1).
    skip_nonfinite: skip and count updates whose loss or gradient is not finite. Without
      it, such an update ends the run.
  """

  name: str = allowed.choice(
    "sgd", "sgd", "adam", "adamw", "lars", "lamb", "muon", "schedule_free_sgd"
  )
  factory: str = allowed.factory()
  learning_rate: float = allowed.positive(0.1)
  learning_rate_multipliers: Mapping[str, float] = dataclasses.field(
    default_factory=dict,
    metadata={
      "allowed": "factors >= 0 of groups, such as head=10,stem=0.1",
      "check": lambda v: all(factor >= 0 for factor in v.values()),
    },
  )
  layer_decay: float = allowed.setting(1.0, "in (0, 1]", lambda v: 0 < v <= 1)
  reference_batch_size: int = allowed.at_least(0, 0)
  batch_scaling: str = allowed.choice("linear", "linear", "sqrt")
  momentum: float = allowed.setting(0.9, "in [0, 1)", lambda v: 0 <= v < 1)
  nesterov: bool = False
  weight_decay: float = allowed.at_least(1e-4, 0)
  decay_all: bool = False
  schedule: str = allowed.choice("step", "step", "cosine", "poly", "plateau")
  decay_epochs: tuple[float, ...] = allowed.increasing(())
  decay_steps: tuple[int, ...] = allowed.increasing(())
  decay_factor: float = allowed.setting(0.1, "in (0, 1]", lambda v: 0 < v <= 1)
  plateau_patience: int = allowed.at_least(10, 0)
  early_stopping_patience: int = allowed.at_least(0, 0, may_change=True)
  min_delta: float = allowed.at_least(0.0, 0)
  warmup: str = allowed.choice("linear", "linear", "constant", "head")
  warmup_epochs: float = allowed.at_least(0.0, 0)
  warmup_steps: int = allowed.at_least(0, 0)
  warmup_learning_rate: float = allowed.at_least(0.0, 0)
  label_smoothing: float = allowed.setting(0.0, "in [0, 1)", lambda v: 0 <= v < 1)
  sam_rho: float = allowed.at_least(0.0, 0)
  accumulate: int = allowed.positive(1)
  ema_decay: float = allowed.setting(0.0, "in [0, 1)", lambda v: 0 <= v < 1)
  swa_start_epochs: float = allowed.at_least(0.0, 0)
  swa_start_steps: int = allowed.at_least(0, 0)
  clip_norm: float = allowed.at_least(0.0, 0)
  shard_state: bool = allowed.changeable(False)
  skip_nonfinite: bool = allowed.changeable(False)

  @property
  def has_average(self) -> bool:
    """Whether an average of the parameters is kept and evaluated too."""
    return self.ema_decay > 0 or self.swa_start_epochs > 0 or self.swa_start_steps > 0

  @property
  def has_plateau(self) -> bool:
    """Whether evaluations decide when the learning rate decreases."""
    return self.schedule == "plateau"

  @property
  def is_schedule_free(self) -> bool:
    """Whether the averaged parameters of a schedule-free optimiser are evaluated."""
    return self.name == "schedule_free_sgd" and not self.factory
