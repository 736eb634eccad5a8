"""Converts a run to a file of weights that PyTorch loads, and back."""

import dataclasses
from pathlib import Path
from typing import Any

from resnet_jax import __version__, weights
from resnet_jax.config.factories import part_name
from resnet_jax.config.fields import flatten, may_change, walk
from resnet_jax.config.preprocessing import preprocessing_of, with_preprocessing
from resnet_jax.config.schema import Config, DataConfig, ModelConfig
from resnet_jax.models import registry
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.resolved_config import check_settings, resolve_model


def convert(
  source: str,
  target: str,
  model: ModelConfig | None = None,
  which: str = "latest",
  trust_code: bool = False,
  dtype: str = "float32",
  ema: bool | None = None,
) -> str:
  """Converts weights.

  Args:
    source: a run directory, `RUN/checkpoints/STEP`, or what `weights.load` reads.
    target: a `.safetensors` file, which is replaced if it exists; or, for a source that
      is not a run, a new run directory.
    model: architecture of a source that is not a run, if its file does not name it.
    which: checkpoint of a run directory: "latest", "best" or a step.
    trust_code: whether to allow code outside this package that a run names.
    dtype: dtype of the tensors in a `.safetensors` file: "float32" or "float16".
    ema: see `weights.load`.

  Returns:
    A line that says what was done.

  Raises:
    ValueError: the weights do not fit, or source, target and model do not go together.
    FileNotFoundError: the source does not exist.
  """
  path, suffix = Path(target), Path(target).suffix
  if suffix == ".safetensors":
    if path.is_dir() or not path.resolve().parent.is_dir():
      raise UserError(f"{target!r} must be a file in an existing directory")
  elif suffix in weights.TORCH_SUFFIXES or suffix.startswith(".safetensor"):
    raise UserError(
      f"{target!r} must end in .safetensors; PyTorch reads it with "
      "safetensors.torch.load_file"
    )
  elif path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(f"{target!r} must be a .safetensors file or a new run directory")
  if suffix != ".safetensors" and dtype != "float32":
    raise UserError(f"--dtype={dtype} is for a .safetensors file, not {target!r}")
  weights.check_exists(source)
  model = model or ModelConfig(name="")
  if weights.is_run(source):
    if ema is not None:
      raise UserError(f"{source!r} is a run, which keeps its EMA itself; omit --ema")
    return _export_run(source, target, model, which, trust_code, dtype)
  return _convert_file(source, target, model, dtype, ema)


def _export_run(
  source: str, target: str, model: ModelConfig, which: str, trust_code: bool, dtype: str
) -> str:
  path, step_given = run_dir.split_checkpoint(source)
  config = run_dir.load_run_config(path, trust_code, ("model.factory",))
  if model.name not in ("", config.model.name):
    raise UserError(f"--model={model.name}, but the run has {config.model.name}")
  if not target.endswith(".safetensors"):
    raise UserError(f"{target!r} must end in .safetensors, as {source!r} is a run")
  with CheckpointStore(path) as store:
    step, variables = store.restore_model(step_given or which)
    evaluation = store.read_evaluation(step)
  weights.save(
    target,
    registry.build_model(config),
    variables,
    preprocessing_of(config.data),
    run_dir.load_class_names(path),
    dtype=dtype,
    # A run that was converted from a file is at step 0.
    training=_describe_training(config, step, evaluation) if step else None,
  )
  name = part_name(config.model.factory, config.model.name)
  return f"{name} after step {step} of {source} -> {target}"


def _describe_training(
  config: Config, step: int, evaluation: dict[str, float]
) -> dict[str, Any]:
  """Returns how a run trained its weights, for `weights.read_training`.

  Everything is from the run's files, except the version of the package that converts
  it. "settings" are the settings that differ from the defaults.
  """
  defaults = flatten(Config())
  settings = {
    path: value
    for path, field, value in walk(config)
    # Leave out paths of this machine, and settings that do not change the result.
    if value != defaults[path] and path != "init_from" and not may_change(field, config)
  }
  return {
    "data": part_name(config.data.factory, config.data.name),
    "seed": config.seed,
    "steps": step,
    "evaluation": {k: v for k, v in evaluation.items() if k != "images_per_s"},
    "settings": settings,
    "converted_by": f"flax-resnet {__version__}",
  }


def _convert_file(
  source: str, target: str, model: ModelConfig, dtype: str, ema: bool | None
) -> str:
  model = weights.complete_model(source, model, ema)
  # A file of weights names no data set. The user names one for evaluation.
  config = Config(model=model, data=DataConfig(name=""))
  config, network = resolve_model(config)
  variables = weights.load(source, network, ema=ema)
  preprocessing = weights.read_preprocessing(source, network)
  class_names = weights.known_class_names(source, config.model.num_classes)
  if target.endswith(".safetensors"):
    weights.save(
      target,
      network,
      variables,
      preprocessing,
      class_names,
      dtype=dtype,
      training=weights.read_training(source),
    )
  else:
    config = dataclasses.replace(
      config, data=with_preprocessing(config.data, preprocessing)
    )
    check_settings(config)
    with (
      run_dir.open_run(target, config, 0, class_names),
      CheckpointStore(target) as store,
    ):
      store.save_weights(variables)
  return f"{model.name} of {source} -> {target}"
