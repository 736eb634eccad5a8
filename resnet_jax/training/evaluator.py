"""How good a model is: of a state, a run, or weights from elsewhere."""

import dataclasses
import time
from collections.abc import Callable

import jax

from resnet_jax import weights
from resnet_jax.config.schema import Config
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables, image_channels
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.facts import read_facts
from resnet_jax.runs.metrics import Metrics, add_metrics, summarize
from resnet_jax.runs.run_dir import check_class_names, load_class_names, load_run_config
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import replicated
from resnet_jax.training.experiment import Devices, Experiment
from resnet_jax.training.resolved_config import with_num_classes

# The settings that can name code that every evaluation of a run uses.
USED = ("model.factory", "task")


def evaluate(experiment: Experiment, variables: Variables) -> dict[str, float]:
  """Evaluates on every image of `experiment.eval_data`, each counted once.

  Args:
    experiment: with the model, the task and the images.
    variables: {"params": ..., "batch_stats": ...}.

  Returns:
    "loss" in nats, "top1" and, for more than 5 classes, "top5" as fractions, or the
    metrics of an own task; "count", "images_per_s".
  """
  start = time.monotonic()
  # Those that the user restored may be on one device.
  variables = jax.device_put(variables, replicated(experiment.mesh))
  variables = experiment.fold(variables)
  total: Metrics | None = None
  for chunk in experiment.eval_data.eval_chunks():
    metrics = experiment.eval_chunk(variables, *chunk)
    # One call ahead of the device, not more: each holds its images in memory.
    total = add_metrics(jax.block_until_ready(total), metrics) if total else metrics
  assert total is not None  # No split is empty.
  values = summarize(total)
  return values | {"images_per_s": values["count"] / (time.monotonic() - start)}


def evaluate_run(
  config: Config,
  workdir: str,
  which: str = "latest",
  devices: Devices | None = None,
  trust_code: bool = False,
) -> tuple[int, dict[str, float]]:
  """Evaluates a saved state of a run.

  Args:
    config: with the run's own model; `data` may name other images.
    workdir: the run directory.
    which: "latest", "best" (by the task's `best_metric`), or a step.
    devices: None is all of them.
    trust_code: whether code that the run names may run.

  Returns:
    (completed steps, the same as `evaluate`).

  Raises:
    UserError: settings that are wrong, do not fit the data or are not the run's.
    NotFoundError: there is no such run, state or data set.
  """
  saved = load_run_config(workdir, trust_code, USED)
  if (config.data.factory, config.data.name) == (saved.data.factory, saved.data.name):
    load_run_config(workdir, trust_code, ["data.factory"])
  config = with_num_classes(config, saved.model.num_classes)
  for field, value in dataclasses.asdict(saved.model).items():
    given = getattr(config.model, field)
    if field not in ("dtype", "scan", "remat") and given != value:
      raise UserError(f"config.model.{field}={given!r}, but the run has {value!r}")
  class_names = load_class_names(workdir)
  experiment = Experiment.create(config, devices=devices, class_names=class_names)
  with CheckpointStore(workdir) as store:
    step, variables = store.restore_model(which, replicated(experiment.mesh))
  check_class_names(experiment.eval_data.class_names, workdir)
  if shape := read_facts(workdir).image_shape:
    _check_channels(experiment, shape[-1])
  elif isinstance(experiment.model, ResNet):
    _check_channels(experiment, image_channels(variables))
  return step, evaluate(experiment, variables)


def evaluate_weights(
  config: Config, path: str, devices: Devices | None = None
) -> dict[str, float]:
  """Evaluates weights from elsewhere.

  Args:
    config: `model.num_classes` 0 is the architecture's own; `data` names the images
      and their preprocessing.
    path: see `weights.load`.
    devices: None is all of them.

  Returns:
    The same as `evaluate`.

  Raises:
    UserError: settings that are wrong or do not fit the data, or weights that do
      not fit the model.
    NotFoundError: the weights or the data set do not exist.
  """
  config = with_num_classes(config, create_model(config.model.name).num_classes)
  experiment = Experiment.create(config, devices=devices, class_names=())
  variables = weights.load(path, experiment.model)
  names, number = experiment.eval_data.class_names, experiment.task.num_classes
  are_indices = tuple(names) == tuple(map(str, range(len(names))))
  if config.data.name == "folder" and len(names) < number and not are_indices:
    raise UserError(
      f"the images have {len(names)} classes, the weights {number}, in an order of "
      "their own; list the images in a .csv file of path,label with the weights' "
      "class indices"
    )
  _check_channels(experiment, image_channels(variables))
  return evaluate(experiment, variables)


def _check_channels(experiment: Experiment, needed: int) -> None:
  given = experiment.eval_data.image_shape[-1]
  if given != needed:
    raise UserError(
      f"the images of {experiment.data_name!r} have {given} channels, the model takes "
      f"{needed}"
    )


def describe(results: dict[str, float]) -> str:
  """Says an evaluation in a line."""
  parts: dict[str, Callable[[float], str]] = {
    "top1": lambda v: f"top-1 {100 * v:.2f} %",
    "top5": lambda v: f"top-5 {100 * v:.2f} %",
    "loss": lambda v: f"loss {v:.4f}",
  }
  known = [say(results[name]) for name, say in parts.items() if name in results]
  others = [
    f"{name} {value:.4g}"
    for name, value in results.items()
    if name not in (*parts, "count", "images_per_s")
  ]
  return f"{', '.join([*known, *others])} on {results['count']:,} images"
