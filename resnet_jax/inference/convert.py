"""Converts a run to a file of weights that PyTorch loads, and back."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from resnet_jax import __version__, weights
from resnet_jax.config.allowed import check_choice
from resnet_jax.config.factories import part_name
from resnet_jax.config.preprocessing import (
  Preprocessing,
  preprocessing_of,
  with_preprocessing,
)
from resnet_jax.config.schema import Config, DataConfig, LossConfig, ModelConfig
from resnet_jax.inference.training_record import describe_training
from resnet_jax.models import building
from resnet_jax.models.variables import Variables
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.fitted_values import read_fitted
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.training.resolved_config import check_settings, resolve_model


def convert(
  source: str,
  target: str,
  model: ModelConfig | None = None,
  which: str = "latest",
  trust_code: bool = False,
  dtype: str = "float32",
  ema: bool | None = None,
  form: str = "",
  license_name: str = "",
  address: str = "",
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
    form: "timm", "torchvision", "transformers" or "flax-resnet" makes `target` a folder
      with a model card, see `weights.save_folder`. With "", `target` is as above.
    license_name: license of the weights. It is written on the model card in the folder,
      so it needs `form`.
    address: see `weights.save_folder`.

  Returns:
    A line that says what was done.

  Raises:
    ValueError: the weights do not fit, or source, target and model do not go together.
    FileNotFoundError: the source does not exist.
  """
  path, suffix = Path(target), Path(target).suffix
  if form:
    check_choice("--format", form, weights.FORMS)
  elif suffix == ".safetensors":
    if path.is_dir() or not path.resolve().parent.is_dir():
      raise UserError(f"{target!r} must be a file in an existing directory")
  elif suffix in weights.FOREIGN_SUFFIXES or suffix.startswith(".safetensor"):
    raise UserError(
      f"{target!r} must end in .safetensors; PyTorch reads it with "
      "safetensors.torch.load_file"
    )
  elif path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(f"{target!r} must be a .safetensors file or a new run directory")
  is_weights = form or suffix == ".safetensors"
  if not is_weights and dtype != "float32":
    raise UserError(f"--dtype={dtype} is for weights, not for the run {target!r}")
  if license_name and not form:
    raise UserError("--license is for the model card of a folder with --format")
  weights.check_exists(source)
  model = model or ModelConfig(name="")
  if weights.is_run(source):
    if ema is not None:
      raise UserError(f"{source!r} is a run, whose config decides on EMA; omit --ema")
    if not is_weights:
      raise UserError(f"{target!r} must end in .safetensors, as {source!r} is a run")
    found = _read_run(source, model, which, trust_code)
  else:
    found = _read_file(source, model, ema)
  given = found.network, found.variables, found.preprocessing, found.class_names
  if form:
    weights.save_folder(
      *(target, form, *given),
      dtype=dtype,
      training=found.training,
      license_name=license_name,
      curves=found.curves,
      address=address,
    )
  elif is_weights:
    weights.save(target, *given, dtype=dtype, training=found.training)
  else:
    _write_run(target, found)
  return f"{found.text} -> {target}"


@dataclasses.dataclass(frozen=True)
class _Found:
  """What is converted; `text` names it, and `curves` is a PNG file or ""."""

  text: str
  config: Config
  network: nn.Module
  variables: Variables
  preprocessing: Preprocessing
  class_names: tuple[str, ...]
  training: dict[str, Any] | None
  curves: str = ""


def _read_run(source: str, model: ModelConfig, which: str, trust_code: bool) -> _Found:
  path, step_given = run_dir.split_checkpoint(source)
  config = run_dir.load_run_config(path, trust_code, ("model.factory",))
  if model.name not in ("", config.model.name):
    raise UserError(f"--model={model.name}, but the run has {config.model.name}")
  with CheckpointStore(path) as store:
    step, variables = store.restore_model(step_given or which)
    evaluation = store.read_evaluation(step)
  name = part_name(config.model.factory, config.model.name)
  curves, labels = Path(path) / "curves.png", config.data.labels
  extra: dict[str, Any] = {"converted_by": f"flax-resnet {__version__}"}
  if labels != "class":
    extra["labels"] = labels
  for fitted in ("temperature", "thresholds"):
    with contextlib.suppress(NotFoundError):
      extra[fitted] = read_fitted(path, step, fitted)
  if labels == "numbers":
    variables = _in_units(variables, config.loss)
  return _Found(
    f"{name} after step {step} of {source}",
    config,
    building.build_model(config),
    variables,
    preprocessing_of(config.data),
    run_dir.load_class_names(path),
    # A run that was converted from a file is at step 0.
    describe_training(config, step, evaluation) | extra if step else None,
    str(curves) if curves.is_file() else "",
  )


def _in_units(variables: Variables, loss: LossConfig) -> Variables:
  """Returns variables whose head gives numbers in the units of the labels."""
  params = dict(variables["params"])
  mean, std = (np.array(x, np.float32) for x in (loss.target_mean, loss.target_std))
  head = params["head"]
  params["head"] = {
    "kernel": head["kernel"] * std[None],
    "bias": head["bias"] * std + mean,
  }
  return {**variables, "params": params}


def _read_file(source: str, model: ModelConfig, ema: bool | None) -> _Found:
  new_head = weights.needs_new_head(source, model.num_classes, ema)
  model = weights.complete_model(source, model, ema)
  # A file of weights names no data set. The user names one for evaluation.
  config = Config(model=model, data=DataConfig(name=""))
  config, network = resolve_model(config)
  return _Found(
    f"{model.name} of {source}",
    config,
    network,
    weights.load(source, network, ema=ema, new_head=new_head),
    weights.read_preprocessing(source, network),
    () if new_head else weights.known_class_names(source, config.model.num_classes),
    None if new_head else weights.read_training(source),
  )


def _write_run(target: str, found: _Found) -> None:
  data = with_preprocessing(found.config.data, found.preprocessing)
  config = dataclasses.replace(found.config, data=data)
  check_settings(config)
  with (
    run_dir.open_run(target, config, 0, found.class_names),
    CheckpointStore(target) as store,
  ):
    store.save_weights(found.variables)
