"""How good a model is: of a state, a run, or weights from elsewhere."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from resnet_jax import weights
from resnet_jax.config.schema import Config
from resnet_jax.data.batches.preprocess import create_preprocess
from resnet_jax.data.pipelines.opening import Dataset, create_dataset
from resnet_jax.models.registry import build_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables, image_channels
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.metrics import Metrics, add_metrics, summarize
from resnet_jax.runs.run_dir import check_class_names, load_class_names, load_run_config
from resnet_jax.runtime.mesh import create_mesh, fill_devices, replicated
from resnet_jax.training import steps
from resnet_jax.training.experiment import check, resolve, resolve_model

Devices = Sequence[jax.Device]


def evaluate(
  eval_chunk: Callable, variables: Variables, dataset: Dataset
) -> dict[str, float]:
  """Evaluates on every example of a data set, each counted once.

  Args:
    eval_chunk: from `compile_eval_chunk`.
    variables: {"params": ..., "batch_stats": ...}.
    dataset: the one that `eval_chunk` was compiled for.

  Returns:
    "loss" in nats, "top1" and "top5" as shares, "count", "images_per_s".
  """
  start = time.monotonic()
  total: Metrics | None = None
  for chunk in dataset.eval_chunks():
    metrics = eval_chunk(variables, *chunk)
    # One call ahead of the device, not more: each holds its images in memory.
    total = add_metrics(jax.block_until_ready(total), metrics) if total else metrics
  assert total is not None  # No split is empty.
  values = summarize(total)
  return values | {"images_per_s": values["count"] / (time.monotonic() - start)}


def evaluate_run(
  config: Config, workdir: str, which: str = "latest", devices: Devices | None = None
) -> tuple[int, dict[str, float]]:
  """Evaluates a saved state of a run.

  Args:
    config: with the run's own model; `data` may name other images.
    workdir: the run directory.
    which: "latest", "best" (by eval top-1), or a step.
    devices: None is all of them.

  Returns:
    (completed steps, the same as `evaluate`).

  Raises:
    ValueError: settings that are wrong, do not fit the data or are not the run's.
    FileNotFoundError: no such run or state, or the data set is not there.
  """
  check(config)
  saved = load_run_config(workdir)
  config = resolve(config, saved.model.num_classes)
  for field, value in dataclasses.asdict(saved.model).items():
    given = getattr(config.model, field)
    if field not in ("dtype", "scan", "remat") and given != value:
      raise ValueError(f"config.model.{field}={given!r}, but the run has {value!r}")
  mesh = create_mesh(devices)
  with CheckpointStore(workdir) as store:
    step, variables = store.restore_model(which, replicated(mesh))
  return step, _evaluate_variables(config, variables, mesh, workdir)


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
    ValueError: settings that are wrong or do not fit the data, or weights that do
      not fit the model.
    FileNotFoundError: the weights or the data set are not there.
  """
  config, model = resolve_model(config)
  mesh = create_mesh(devices)
  variables = weights.load(path, model)
  variables = jax.device_put(variables, replicated(mesh))
  return _evaluate_variables(config, variables, mesh)


def _evaluate_variables(
  config: Config, variables: Variables, mesh: Mesh, workdir: str | None = None
) -> dict[str, float]:
  class_names = load_class_names(workdir) if workdir else ()
  dataset, eval_chunk = create_evaluation(
    config, build_model(config), mesh, class_names
  )
  if workdir:
    check_class_names(dataset.class_names, workdir)
  elif config.data.name == "folder":
    names, number = dataset.class_names, config.model.num_classes
    if len(names) < number and names != tuple(map(str, range(len(names)))):
      raise ValueError(
        f"the images have {len(names)} classes, the weights {number}, in an order of "
        "their own; list the images in a .csv file of path,label with the weights' "
        "class indices"
      )
  given, needed = dataset.image_shape[-1], image_channels(variables)
  if given != needed:
    raise ValueError(
      f"the images of {config.data.name!r} have {given} channels, the model takes "
      f"{needed}"
    )
  return evaluate(eval_chunk, variables, dataset)


def create_evaluation(
  config: Config, model: ResNet, mesh: Mesh, class_names: Sequence[str] = ()
) -> tuple[Dataset, Callable]:
  """Loads the evaluation split and makes the `eval_chunk` for it.

  The batch size is rounded up to fill the devices; padding counts for nothing.

  Raises:
    ValueError: the data has more classes than the model, or `create_dataset`'s.
    FileNotFoundError: the data set is not there.
  """
  batch_size = fill_devices(config.batch_size, mesh)
  dataset = create_dataset(config.data, batch_size, mesh, class_names=class_names)
  if len(dataset.class_names) > config.model.num_classes:
    raise ValueError(
      f"config.model.num_classes={config.model.num_classes} must be 0 or at least "
      f"{len(dataset.class_names)}, the number of classes of {config.data.name!r}"
    )
  eval_chunk = steps.compile_eval_chunk(
    apply_fn=model.apply,
    preprocess=create_preprocess(config),
    take_batch=dataset.take_batch,
    num_classes=config.model.num_classes,
    sharding=replicated(mesh),
    dtype=config.model.dtype,
  )
  return dataset, eval_chunk


def describe(results: dict[str, float]) -> str:
  """Says an evaluation in a line."""
  top5 = f", top-5 {100 * results['top5']:.2f} %" if "top5" in results else ""
  return (
    f"top-1 {100 * results['top1']:.2f} %{top5}, loss {results['loss']:.4f} "
    f"on {results['count']:,} images"
  )
