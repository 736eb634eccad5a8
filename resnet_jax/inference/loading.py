"""Loads a trained network and its preprocessing from a run or a file of weights."""

import os

from resnet_jax import weights
from resnet_jax.config.factories import part_name
from resnet_jax.config.preprocessing import preprocessing_of
from resnet_jax.config.schema import Config, DataConfig, ModelConfig
from resnet_jax.inference.calibration import read_calibration
from resnet_jax.inference.classifier import Classifier
from resnet_jax.inference.detector import Detector
from resnet_jax.inference.segmentation import PixelClassifier
from resnet_jax.inference.training_record import describe_training
from resnet_jax.models.building import build_model
from resnet_jax.models.variables import image_channels
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.facts import read_facts
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.resolved_config import resolve_weights

# What the network predicts, see `DataConfig.labels` -> the class for it, if that is not
# `Classifier`.
_KINDS: dict[str, type[Classifier]] = {"mask": PixelClassifier, "boxes": Detector}


def load(
  path: str,
  model: str = "",
  *,
  num_classes: int = 0,
  checkpoint: str = "latest",
  trust_code: bool = False,
  ema: bool | None = None,
  calibrated: bool = False,
) -> Classifier:
  """Loads a trained network: a run, or a file of weights.

  Args:
    path: directory of a run, or weights: a name in the package such as
      "resnet20_cifar10", a file or folder for `weights.load`, or hf://owner/name.
    model: architecture of the weights, such as "resnet50", if their file does not name
      it. Not needed for a run.
    num_classes: number of classes; 0 takes it from the file. If the file has another
      number, the network gets a new head, which is not trained, and a line says so.
    checkpoint: checkpoint of a run: "latest", "best" or a step.
    trust_code: whether to allow code outside this package that a run names.
    ema: see `weights.load`; None for a run.
    calibrated: use the temperature or the thresholds that `resnet-jax evaluate
      --fit-temperature` or `--fit-thresholds` stored with the run, or with the weights
      that were converted from it.

  Raises:
    NotFoundError: the run, checkpoint or file does not exist.
    UserError: the weights do not fit, or the path and `model` do not go together.
    OSError: the checkpoint is damaged.
  """
  path = os.path.expanduser(path)
  weights.check_exists(path)
  if weights.is_run(path):
    if model:
      raise UserError(f"{path!r} is a run, which names its own model; omit `model`")
    if ema is not None:
      raise UserError(f"{path!r} is a run, whose config decides on EMA; omit `ema`")
    return load_run(path, checkpoint, trust_code, calibrated)
  config = ModelConfig(name=model, num_classes=num_classes)
  return load_weights(path, config, ema, calibrated)


def load_run(
  workdir: str,
  which: str = "latest",
  trust_code: bool = False,
  calibrated: bool = False,
) -> Classifier:
  """Loads a run.

  Args:
    workdir: the run directory.
    which: "latest", "best" or a step.
    trust_code: whether to allow code outside this package that the run names.
    calibrated: see `load`.

  Raises:
    FileNotFoundError: the run or checkpoint does not exist.
    OSError: the checkpoint is damaged.
    ValueError: the run's settings are damaged.
  """
  config = run_dir.load_run_config(workdir, trust_code, ("model.factory",))
  with CheckpointStore(workdir) as store:
    step, variables = store.restore_model(which)
    evaluation = store.read_evaluation(step)
  shape = read_facts(workdir).image_shape
  kind = _KINDS.get(config.data.labels, Classifier)
  return kind(
    part_name(config.model.factory, config.model.name),
    build_model(config),
    variables,
    preprocessing_of(config.data),
    weights.all_class_names(
      run_dir.load_class_names(workdir), config.model.num_classes
    ),
    shape[-1] if shape else image_channels(variables),
    config.data.max_pixels,
    labels=config.data.labels,
    mean=config.loss.target_mean or (0.0,),
    std=config.loss.target_std or (1.0,),
    # A run that was converted from a file is at step 0.
    training=describe_training(config, step, evaluation) if step else {},
    **read_calibration(workdir, step, config.data.labels) if calibrated else {},
  )


def load_weights(
  path: str, model: ModelConfig, ema: bool | None = None, calibrated: bool = False
) -> Classifier:
  """Loads a file of weights, and their preprocessing (`weights.read_preprocessing`).

  Args:
    path: as in `weights.load`.
    model: the architecture, see `weights.complete_model`.
    ema: as in `weights.load`.
    calibrated: see `load`.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the architecture is unknown, or the weights do not fit it.
  """
  path, config = os.path.expanduser(path), Config(model=model, data=DataConfig(name=""))
  config, network, new_head = resolve_weights(path, config, ema)
  variables = weights.load(path, network, ema=ema, new_head=new_head)
  num_classes, labels = config.model.num_classes, config.data.labels
  names: tuple[str, ...] = ()
  if not new_head:
    names = weights.known_class_names(path, num_classes, labels)
  kind = _KINDS.get(labels, Classifier)
  return kind(
    config.model.name,
    network,
    variables,
    weights.read_preprocessing(path, network),
    weights.all_class_names(names, num_classes),
    image_channels(variables),
    labels=labels,
    training={} if new_head else weights.read_training(path),
    **read_calibration(path, None, labels) if calibrated else {},
  )
