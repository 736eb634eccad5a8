"""Checks each setting by itself, and settings that exclude each other."""

import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from resnet_jax.config.fields import flatten, type_name, walk
from resnet_jax.config.loss_settings import LOSSES
from resnet_jax.config.optim_settings import OptimConfig
from resnet_jax.config.schema import AugmentConfig, Config, DataConfig
from resnet_jax.runtime.errors import UserError, setting_name

# Setting -> the values of `data.labels` with which it has a meaning.
_OF_LABELS = {
  "optim.label_smoothing": ("class", "classes"),
  "augment.cutmix": ("class", "classes"),
  "augment.mixup": ("class", "classes", "numbers"),
  "augment.policy": ("class", "classes", "numbers"),
  "augment.image_factory": ("class", "classes", "numbers"),
  "augment.batch_factory": ("class", "classes", "numbers"),
  "augment.progressive_sizes": ("class", "classes", "numbers"),
  "data.train_resize": ("class", "classes", "numbers", "mask"),
  "loss.focal_gamma": ("class", "classes"),
  "distill.teacher": ("class", "classes", "numbers"),
  "data.sampling": ("class",),
  "loss.bce_threshold": ("class",),
  "loss.class_weighting": ("class", "classes"),
  "loss.class_weights": ("class", "classes"),
  "loss.class_counts": ("class",),
  "loss.logit_adjustment": ("class",),
  "loss.target_mean": ("numbers",),
  "loss.target_std": ("numbers",),
}


def has_type(value: object, kind: Any) -> bool:
  """Whether a value has the type of a field; a bool is not a number."""
  if isinstance(kind, types.UnionType):
    return any(has_type(value, option) for option in typing.get_args(kind))
  if typing.get_origin(kind) is Mapping:
    key, item = typing.get_args(kind)
    return isinstance(value, Mapping) and all(
      has_type(k, key) and has_type(v, item) for k, v in value.items()
    )
  if typing.get_origin(kind) is tuple:
    item = typing.get_args(kind)[0]
    return isinstance(value, tuple) and all(has_type(v, item) for v in value)
  if kind is float:
    return (
      isinstance(value, int | float)
      and not isinstance(value, bool)
      and abs(value) <= sys.float_info.max
    )
  if kind is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, kind)


def _is_too_large(value: object) -> bool:
  values = value if isinstance(value, tuple) else (value,)
  return any(isinstance(v, int) and abs(v) >= 2**63 for v in values)


def validate(config: Config) -> None:
  """Checks every setting by itself and those that exclude each other.

  The architecture's name is checked where it is built (`create_model`).

  Raises:
    ValueError: a value is not allowed. The message has the setting, its value and what
      is allowed.
  """
  for path, field, value in walk(config):
    if not has_type(value, field.type):
      allowed = type_name(path)
    elif _is_too_large(value):
      allowed = "below 2**63"
    elif "check" in field.metadata and not field.metadata["check"](value):
      allowed = field.metadata["allowed"]
    else:
      continue
    raise UserError(
      f"{setting_name(path)}={value!r} must be {allowed}", setting=path, value=value
    )

  values, defaults = flatten(config), flatten(Config())
  for name in (
    "log_every",
    "eval_every",
    "optim.decay",
    "optim.warmup",
    "optim.swa_start",
  ):
    epochs, steps = f"{name}_epochs", f"{name}_steps"
    if values[epochs] and values[steps]:
      raise UserError(
        f"config.{epochs}={values[epochs]} and config.{steps}={values[steps]} exclude "
        f"each other; set one of them to {defaults[steps]}"
      )
  optim = config.optim
  data = config.data
  if 0 < data.eval_resize < data.eval_crop:
    raise UserError(
      f"{setting_name('data.eval_crop')}={data.eval_crop} must be at most "
      f"{setting_name('data.eval_resize')}={data.eval_resize}"
    )
  if config.batch_size % optim.accumulate:
    raise UserError(
      f"config.batch_size={config.batch_size} must be a multiple of "
      f"config.optim.accumulate={optim.accumulate}"
    )
  default = Config()
  norm = config.model.norm or "batch"  # With another norm of its own, see `with_norm`.
  for name in ("precise_bn_batches", "bn_scope"):
    value = getattr(config, name)
    if value != getattr(default, name) and "batch" not in norm:
      raise UserError(
        f"config.{name}={value} needs a batch norm, not "
        f"config.model.norm={config.model.norm!r}"
      )
  is_resized = data.train_crop in ("random", "center")
  if is_resized and data.image_size > data.train_resize:
    raise UserError(
      f"config.data.image_size={data.image_size} must be at most "
      f"config.data.train_resize={data.train_resize} with "
      f"config.data.train_crop={data.train_crop!r}"
    )
  if config.init_head and not config.init_from:
    raise UserError(
      "config.init_head=True needs config.init_from, the trained weights that have the "
      "head; name a run or a file of weights"
    )
  if config.augment.policy and not data.train_crop:
    raise UserError(
      f"config.augment.policy={config.augment.policy!r} needs config.data.train_crop"
    )
  _check_pixels(data, config.augment)
  if config.augment.image_factory and not data.train_crop:
    raise UserError(
      f"config.augment.image_factory={config.augment.image_factory!r} needs "
      "config.data.train_crop"
    )
  if optim.nesterov and not optim.momentum:
    raise UserError("config.optim.nesterov=True needs config.optim.momentum > 0")
  if optim.warmup == "constant" and not optim.warmup_learning_rate:
    raise UserError(
      "config.optim.warmup='constant' needs config.optim.warmup_learning_rate > 0"
    )
  if optim.warmup == "head" and not (optim.warmup_epochs or optim.warmup_steps):
    raise UserError(
      "config.optim.warmup='head' needs config.optim.warmup_epochs > 0, the epochs in "
      "which only the head is trained"
    )
  if optim.warmup == "head" and "head" in config.freeze:
    raise UserError(
      "config.optim.warmup='head' trains the head first, but config.freeze="
      f"{','.join(config.freeze)} freezes it; remove 'head' from config.freeze, or use "
      "another config.optim.warmup"
    )
  if optim.schedule != "step" and (optim.decay_epochs or optim.decay_steps):
    raise UserError(
      f"config.optim.decay_epochs={optim.decay_epochs} and config.optim.decay_steps="
      f"{optim.decay_steps} belong to config.optim.schedule='step'; "
      f"{optim.schedule!r} has none, set them to ()"
    )
  _check_patience(optim)
  if optim.ema_decay and (optim.swa_start_epochs or optim.swa_start_steps):
    raise UserError(
      f"config.optim.ema_decay={optim.ema_decay} and config.optim.swa_start_epochs or "
      "config.optim.swa_start_steps exclude each other; a run keeps one average"
    )
  if optim.is_schedule_free:
    _check_schedule_free(optim)
  if not config.task:
    _check_loss(config)


def _check_pixels(data: DataConfig, augment: AugmentConfig) -> None:
  """Refuses settings that have no meaning for the channels or the range of images."""
  if augment.policy and (data.channels not in (1, 3) or data.max_value):
    raise UserError(
      f"config.augment.policy={augment.policy!r} needs 8-bit images of 1 or 3 "
      f"channels, not config.data.channels={data.channels} and "
      f"config.data.max_value={data.max_value}; set it to ''"
    )
  if data.channel_order == "bgr" and data.channels not in (1, 3):
    raise UserError(
      f"config.data.channel_order='bgr' has no meaning for config.data.channels="
      f"{data.channels}; set it to 'rgb'"
    )


def _check_loss(config: Config) -> None:
  """Refuses settings that have no meaning for the labels."""
  kind, loss = config.data.labels, config.loss
  if loss.name and loss.name not in LOSSES[kind]:
    raise UserError(
      f"config.loss.name={loss.name!r} must be {' or '.join(map(repr, LOSSES[kind]))} "
      f"with config.data.labels={kind!r}"
    )
  values, defaults = flatten(config), flatten(Config())
  for name, kinds in _OF_LABELS.items():
    if values[name] != defaults[name] and kind not in kinds:
      raise UserError(
        f"config.{name}={values[name]!r} has no meaning with config.data.labels="
        f"{kind!r}; set it to {defaults[name]!r}"
      )


def _check_patience(optim: OptimConfig) -> None:
  """Refuses settings of a plateau or of early stopping that have no effect."""
  default = OptimConfig().plateau_patience
  if optim.plateau_patience != default and not optim.has_plateau:
    raise UserError(
      f"config.optim.plateau_patience={optim.plateau_patience} belongs to "
      f"config.optim.schedule='plateau', not {optim.schedule!r}; set it to {default}"
    )
  if optim.min_delta and not (optim.has_plateau or optim.early_stopping_patience):
    raise UserError(
      f"config.optim.min_delta={optim.min_delta} belongs to "
      "config.optim.schedule='plateau' and config.optim.early_stopping_patience; set "
      "one of them, or min_delta to 0"
    )


def _check_schedule_free(optim: OptimConfig) -> None:
  """Refuses settings that have no meaning for a schedule-free optimiser."""
  refused = {
    "schedule": optim.schedule != "step",
    "decay_epochs": bool(optim.decay_epochs),
    "decay_steps": bool(optim.decay_steps),
    "ema_decay": optim.ema_decay > 0,
    "swa_start_epochs": optim.swa_start_epochs > 0,
    "swa_start_steps": optim.swa_start_steps > 0,
    "nesterov": optim.nesterov,
    "momentum": not optim.momentum,
  }
  for name, is_refused in refused.items():
    if is_refused:
      advice = "> 0" if name == "momentum" else repr(getattr(OptimConfig(), name))
      raise UserError(
        f"config.optim.{name}={getattr(optim, name)!r} must be {advice} with "
        f"config.optim.name={optim.name!r}"
      )
