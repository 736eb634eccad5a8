"""The settings one by one: their paths, types and values."""

import dataclasses
import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resnet_jax.config.allowed import MayChange, nearest
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError

if TYPE_CHECKING:
  from _typeshed import DataclassInstance


def walk(
  config: "DataclassInstance", prefix: str = ""
) -> Iterator[tuple[str, dataclasses.Field[Any], object]]:
  """Yields (path, field, value) of every setting, in order."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(field.type):
      yield from walk(value, f"{prefix}{field.name}.")
    else:
      yield prefix + field.name, field, value


def set_value(config: Config, path: str, value: object) -> None:
  """Sets a setting in place.

  Args:
    config: the config to change.
    path: path of the setting, such as "optim.learning_rate".
    value: the new value; it is not checked here.

  Raises:
    ValueError: there is no such setting.
  """
  check_field_name(path)
  *groups, name = path.split(".")
  group: object = config
  for part in groups:
    group = getattr(group, part)
  setattr(group, name, value)


def may_change(field: dataclasses.Field[Any], config: Config) -> bool:
  """Whether a run may be resumed with `config` if its value of `field` is a new one."""
  rule: MayChange = field.metadata.get("may_change", False)
  return rule if isinstance(rule, bool) else rule(config)


def flatten(config: Config) -> dict[str, object]:
  """Returns all settings as {"optim.learning_rate": 0.1, ...}."""
  return {path: value for path, _, value in walk(config)}


def check_field_name(path: str) -> None:
  """Raises `ValueError` with the nearest names if `path` is not a setting."""
  if path not in flatten(Config()):
    advice = advise(path) or "`resnet-jax train --help` lists all settings"
    raise UserError(f"config.{path} is no setting; {advice}")


# Names of our settings in other programs.
_OTHER_NAMES = {
  "batch_size": "b bs batch batchsize train_batch_size",
  "num_epochs": "epoch epochs max_epochs n_epochs num_train_epochs",
  "num_steps": "steps max_steps total_steps train_steps iters iterations max_iters",
  "init_from": "pretrained finetune weights init load_from",
  "bn_scope": "sync_bn syncbn sync_batchnorm",
  "log_every_steps": "log_every log_freq log_interval print_freq",
  "eval_every_steps": "eval_every eval_freq eval_interval val_every",
  "checkpoint.every_steps": "save_every save_freq save_interval checkpoint_every",
  "checkpoint.keep": "keep_checkpoints max_to_keep save_total_limit",
  "trackers": "log_to log_wandb logger loggers mlflow report_to tracker wandb",
  "seed": "manual_seed random_seed",
  "model.name": "arch architecture backbone depth model model_name net network",
  "model.dtype": "amp bf16 fp16 half mixed_precision precision",
  "model.num_classes": "classes n_classes nb_classes num_labels",
  "model.zero_init_residual": "zero_gamma zero_init_last",
  "model.stochastic_depth": "drop_path drop_path_rate",
  "data.name": "data dataset dataset_name",
  "data.dir": "data_dir data_path data_root dataset_dir root",
  "data.num_workers": "j workers n_workers",
  "data.num_threads": "threads",
  "data.val_share": "val_fraction val_size val_split validation_split",
  "data.image_size": "img_size imgsz input_size resolution",
  "optim.name": "opt optim optimizer optimiser",
  "optim.learning_rate": "lr lr0 base_lr max_lr peak_lr",
  "optim.schedule": "sched scheduler lr_sched lr_schedule lr_scheduler",
  "optim.decay_epochs": "lr_steps milestones step_size",
  "optim.decay_factor": "decay_rate gamma lr_gamma",
  "optim.plateau_patience": "lr_patience patience_epochs",
  "optim.early_stopping_patience": "early_stop early_stopping stop_after",
  "optim.min_delta": "early_stopping_threshold plateau_threshold threshold",
  "optim.warmup_epochs": "lr_warmup_epochs warmup",
  "optim.warmup_learning_rate": "warmup_lr",
  "optim.weight_decay": "wd l2",
  "optim.label_smoothing": "smoothing",
  "optim.clip_norm": "clip clip_grad grad_clip gradient_clip_val max_grad_norm",
  "optim.accumulate": "accum grad_accum accum_iter gradient_accumulation_steps",
  "optim.ema_decay": "ema model_ema ema_rate",
  "optim.layer_decay": "layer_lr_decay layerwise_decay llrd",
  "optim.sam_rho": "sam rho",
  "optim.swa_start_epochs": "swa swa_start swa_epoch_start",
  "distill.teacher": "distill_from distillation teacher_model teacher_path",
  "distill.temperature": "distill_temperature kd_t kd_temperature tau",
  "distill.weight": "distill_weight distillation_alpha kd_alpha kd_weight",
  "augment.flip": "hflip horizontal_flip",
  "augment.policy": "aa autoaugment auto_augment randaug randaugment",
  "augment.erasing": "reprob random_erase random_erasing cutout",
  "augment.progressive_sizes": "progressive_resizing progressive_learning",
  "augment.mixup": "mixup_alpha",
  "augment.cutmix": "cutmix_alpha",
}
_SETTING_OF = {
  name: path for path, names in _OTHER_NAMES.items() for name in names.split()
}
# Names that are settings elsewhere but not here.
_ADVICE = {
  "all devices are used; hide some with CUDA_VISIBLE_DEVICES": (
    "device devices gpu gpus n_gpus ngpus num_devices num_gpus"
  ),
  "--workdir names the run's directory": (
    "exp_dir exp_name log_dir logdir out out_dir output output_dir outdir run_dir "
    "run_name save_dir"
  ),
  "the same --workdir resumes a run": "resume resume_from auto_resume",
}
_ADVICE_OF = {name: text for text, names in _ADVICE.items() for name in names.split()}


def advise(name: str, flag: str = "config.", others: Sequence[str] = ()) -> str:
  """Returns a suggestion for a name that is not a setting.

  Args:
    name: the name, such as "optim.lr". Only its last part is compared.
    flag: prefix of a setting's name in the suggestion.
    others: other flags that may be meant, such as "--workdir".

  Returns:
    Part of a sentence, or "" if no name is near.
  """
  last = _last_part(name)
  if last in _ADVICE_OF:
    return _ADVICE_OF[last]
  known = defaultdict(list)
  for full in (*others, *(flag + path for path in flatten(Config()))):
    known[_last_part(full)].append(full)
  if last in _SETTING_OF:
    near = [flag + _SETTING_OF[last]]
  else:
    parts = [last] if last in known else nearest(last, known)
    near = [full for part in parts for full in known[part]]
  if "." in name:  # The group distinguishes settings of the same name.
    near = difflib.get_close_matches(flag + name, near, n=3, cutoff=0.0)
  return f"did you mean {', '.join(near[:3])}?" if near else ""


def _last_part(name: str) -> str:
  """Returns "learning_rate" for "--config.optim.learning-rate"."""
  return name.rsplit(".", 1)[-1].lstrip("-").replace("-", "_").lower()


def type_name(path: str) -> str:
  """Returns the type of a setting in plain words, such as "a whole number"."""
  words: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    int | str: "a word or a whole number",
    tuple[str, ...]: "names with commas between, such as stem,stage1",
    tuple[int, ...]: "a tuple of whole numbers, such as (30, 60)",
    tuple[float, ...]: "a tuple of numbers, such as (0.5, 0.5)",
    Mapping[str, float]: "different names with numbers, such as head=10,stem=0.1",
  }
  types = {field_path: field.type for field_path, field, _ in walk(Config())}
  return words[types[path]]
