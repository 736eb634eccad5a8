"""An experiment's settings: typed dataclasses, checked once.

A file in `configs/` returns a `Config`, and `--config.a.b=value` changes it.
`validation.py` refuses wrong types and values before anything is compiled. Each field
states its allowed values, and whether they may change when a run is resumed.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses

from resnet_jax.config import allowed
from resnet_jax.config.data_settings import AugmentConfig, DataConfig
from resnet_jax.config.distill_settings import DistillConfig
from resnet_jax.config.loss_settings import LossConfig
from resnet_jax.config.model_settings import ModelConfig
from resnet_jax.config.optim_settings import OptimConfig

__all__ = [
  "AugmentConfig",
  "CheckpointConfig",
  "Config",
  "DataConfig",
  "DistillConfig",
  "LossConfig",
  "ModelConfig",
  "OptimConfig",
]


def _steps_ignore_length(config: "Config") -> bool:
  """Whether the result of a step is independent of the length of the run."""
  depends = config.optim.schedule in ("cosine", "poly")
  return not depends and not config.augment.progressive_sizes


def _has_free_evaluations(config: "Config") -> bool:
  """Whether evaluations decide neither the learning rate nor the end of the run."""
  return not config.optim.has_plateau and not config.optim.early_stopping_patience


@dataclasses.dataclass(slots=True)
class CheckpointConfig:
  """Checkpoints. Each evaluation saves one, and so does the end of training.

  Attributes:
    every_steps: number of steps between additional checkpoints; 0 saves none of these.
    keep: number of newest checkpoints to keep. The best checkpoint is also kept.
  """

  every_steps: int = allowed.at_least(0, 0, may_change=True)
  keep: int = allowed.at_least(2, 1, may_change=True)


@dataclasses.dataclass(slots=True)
class Config:
  """One experiment.

  Attributes:
    seed: seed of initialisation, shuffling and augmentation.
    num_epochs: length of training in epochs; unused if `num_steps` is set.
    num_steps: length of training in steps; 0 takes `num_epochs`.
    batch_size: number of images per step, over all devices.
    steps_per_call: largest number of steps that one call of the compiled function
      makes.
    log_every_steps, log_every_epochs: period of the logs of training metrics, in steps
      or in epochs, such as 0.5. If both are 0, the run logs every 50 steps, or once per
      epoch if an epoch has fewer steps.
    eval_every_steps, eval_every_epochs: period of evaluations in steps or in epochs. If
      both are 0, it is one epoch. The last step is always evaluated.
    kernels: how convolution and batch norm are computed. "xla" is XLA's way. "native"
      is this package's C++ kernels, for a machine with one CPU device and a C++
      compiler. "auto" is "native" where that is possible. The results differ by
      rounding only.
    bn_scope: devices over which batch norm pools its statistics in training. "global"
      is all devices; "device" is each device alone, without communication, as in the
      paper; a number such as 4 is groups of that many devices. With `optim.accumulate`,
      the images of one part are pooled.
    init_from: trained weights to start from: a run (RUN or RUN/checkpoints/STEP), or a
      file or name that `weights.load` reads. Their head is not taken, unless
      `init_head` is set.
    init_head: also take the head of `init_from`. The images must have its classes.
    freeze: groups of parameters that do not change: any of stem, stage1, stage2, ...
      and head. Their batch-norm statistics do not change either. "body" is all but the
      head and the last norm, as in FixRes (Touvron et al. 2019, section 4.2). On the
      command line, the groups are separated by commas.
    task: import path of your own `Task`, "package.module:function". The function takes
      the config and returns the task; "" is the task that fits `data.labels`.
    trackers: where the metrics and files go in addition to the run directory: any of
      mlflow and wandb (Weights & Biases), or the import path of your own tracker,
      "package.module:function". On the command line, they are separated by commas.
    precise_bn_batches: training batches used to re-estimate batch-norm statistics
      before each evaluation, as the paper's authors did; 0 keeps the running
      statistics.
  """

  seed: int = allowed.setting(0, "in [0, 2**31)", lambda v: 0 <= v < 2**31)
  num_epochs: float = allowed.positive(1.0, may_change=_steps_ignore_length)
  num_steps: int = allowed.setting(
    0, "in [0, 2**31)", lambda v: 0 <= v < 2**31, may_change=_steps_ignore_length
  )
  batch_size: int = allowed.positive(128)
  steps_per_call: int = allowed.positive(10, may_change=True)
  log_every_steps: int = allowed.at_least(0, 0, may_change=True)
  log_every_epochs: float = allowed.at_least(0.0, 0, may_change=True)
  eval_every_steps: int = allowed.at_least(0, 0, may_change=_has_free_evaluations)
  eval_every_epochs: float = allowed.at_least(0.0, 0, may_change=_has_free_evaluations)
  kernels: str = allowed.choice("auto", "auto", "xla", "native", may_change=True)
  bn_scope: int | str = allowed.setting(
    "global",
    "'global', 'device' or a number of devices, such as 4",
    lambda v: v in ("global", "device") if isinstance(v, str) else v > 0,
  )
  init_from: str = ""
  init_head: bool = False
  freeze: tuple[str, ...] = ()
  task: str = allowed.factory()
  trackers: tuple[str, ...] = allowed.factories("mlflow", "wandb")
  precise_bn_batches: int = allowed.at_least(0, 0)
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
  loss: LossConfig = dataclasses.field(default_factory=LossConfig)
  optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
  checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
  distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
