"""The story of a run: from settings to a trained, evaluated and saved model."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from resnet_jax import backend, steps, weights
from resnet_jax.checkpoint import CheckpointStore, load_run_config, open_run
from resnet_jax.config import Config, validate
from resnet_jax.data import ResidentDataset, create_dataset
from resnet_jax.data.augment import preprocess
from resnet_jax.metrics import add_metrics, summarize
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.zoo import create_model
from resnet_jax.optim import create_optimizer, create_schedule
from resnet_jax.plan import Plan
from resnet_jax.sharding import create_mesh, replicated
from resnet_jax.train_state import (
  TrainState,
  Variables,
  create_train_state,
  image_channels,
)
from resnet_jax.writers import DIVERGENCE_ADVICE, MetricWriter

Devices = Sequence[jax.Device]


def train_and_evaluate(
  config: Config,
  workdir: str,
  devices: Devices | None = None,
  console: Console | None = None,
) -> tuple[TrainState, dict[str, float]]:
  """Trains from the newest checkpoint in `workdir`, or from step 0.

  Args:
    config: the experiment.
    workdir: the run directory; made if it is not there.
    devices: to train on; None is all of them.
    console: where progress is shown; None is standard output.

  Returns:
    The final state and its evaluation: "loss", "top1" (a share), "top5" for more
    than 5 classes, "count", "images_per_s".

  Raises:
    ValueError: settings that are wrong or do not fit the data or the run there.
    FileNotFoundError: the data set is not there.
    FloatingPointError: the loss is no longer finite.
  """
  check(config)
  console = console or Console()
  mesh = create_mesh(devices)
  init_key, data_key = jax.random.split(jax.random.key(config.seed))
  data = config.data
  with console.status(f"loading {data.name}"):
    train_set = create_dataset(data, data.train_split, config.batch_size, mesh)
    plan = Plan.create(config, train_set.num_examples)
    config = resolve(config, train_set.num_classes)
    model = build_model(config)
    eval_set, eval_chunk = create_evaluation(config, model, mesh)
  open_run(workdir, config, plan.num_steps)

  schedule = create_schedule(config.optim, plan, config.batch_size)
  tx = create_optimizer(config.optim, schedule)
  shape, sharding = train_set.image_shape, replicated(mesh)
  state = create_train_state(init_key, model, tx, shape, sharding)
  train_chunk = steps.compile_train_chunk(
    preprocess=create_preprocess(config),
    take_batch=train_set.take_batch,
    num_classes=config.model.num_classes,
    label_smoothing=config.optim.label_smoothing,
    sharding=sharding,
  )
  show = partial(console.print, highlight=False, markup=False, soft_wrap=True)
  with CheckpointStore(workdir, config.checkpoint.keep) as store:
    state, results = store.restore_latest(state), None
    start = int(state.step)
    chunks = partial(train_set.train_chunks, data_key, start, plan)
    show(_headline(config, plan, state, train_set, eval_set))
    show(f"run: {workdir}")
    with MetricWriter(workdir, plan, jax.jit(schedule), start, console) as writer:
      # Calls of no steps compile, so that no measured time contains it.
      for _, feed, _ in itertools.islice(chunks(), 1):
        state, _ = train_chunk(state, feed, 0)
        for feed, _ in eval_set.eval_chunks():
          eval_chunk(state.variables, feed, 0)
      writer.start_clock()
      for step, feed, count in chunks():
        state, metrics = train_chunk(state, feed, count)
        writer.train(step, metrics)
        if plan.save_at(step):
          writer.flush()
          check_finite(state.variables, step)
          results = None
          if plan.eval_at(step):
            results = evaluate(eval_chunk, state.variables, eval_set)
            writer.evaluation(step, results)
          store.save(step, state, results)
          writer.start_clock()
  return state, results or evaluate(eval_chunk, state.variables, eval_set)


def evaluate(
  eval_chunk: Callable, variables: Variables, dataset: ResidentDataset
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
  chunks = [eval_chunk(variables, *chunk) for chunk in dataset.eval_chunks()]
  values = summarize(functools.reduce(add_metrics, chunks))
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
  return step, _evaluate_variables(config, variables, mesh)


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


def _evaluate_variables(config: Config, variables: Variables, mesh: Mesh):
  dataset, eval_chunk = create_evaluation(config, build_model(config), mesh)
  given, needed = dataset.image_shape[-1], image_channels(variables)
  if given != needed:
    raise ValueError(
      f"the images of {config.data.name!r} have {given} channels, the model takes "
      f"{needed}"
    )
  return evaluate(eval_chunk, variables, dataset)


def create_evaluation(
  config: Config, model: ResNet, mesh: Mesh
) -> tuple[ResidentDataset, Callable]:
  """Loads the evaluation split and makes the `eval_chunk` for it.

  The batch size is rounded up to fill the devices; padding counts for nothing.

  Raises:
    ValueError: the data has more classes than the model, or `create_dataset`'s.
    FileNotFoundError: the data set is not there.
  """
  batch_size = math.ceil(config.batch_size / mesh.size) * mesh.size
  dataset = create_dataset(config.data, config.data.eval_split, batch_size, mesh)
  if dataset.num_classes > config.model.num_classes:
    raise ValueError(
      f"config.model.num_classes={config.model.num_classes} must be 0 or at least "
      f"{dataset.num_classes}, the number of classes of {config.data.name!r}"
    )
  eval_chunk = steps.compile_eval_chunk(
    apply_fn=model.apply,
    preprocess=create_preprocess(config),
    take_batch=dataset.take_batch,
    num_classes=config.model.num_classes,
    sharding=replicated(mesh),
  )
  return dataset, eval_chunk


def create_preprocess(config: Config) -> Callable:
  """Returns `preprocess` with these settings: (images, key or None) -> images."""
  return partial(
    preprocess,
    padding=config.augment.padding,
    flip=config.augment.flip,
    resize=config.data.eval_resize,
    crop=config.data.eval_crop,
    interpolation=config.data.interpolation,
    mean=config.data.mean,
    std=config.data.std,
  )


def check(config: Config) -> None:
  """Raises `ValueError` for any setting that is wrong whatever the data."""
  validate(config)
  build_model(resolve(config, num_classes=1))


def check_finite(variables: Variables, step: int) -> None:
  """Raises `FloatingPointError` if parameters or statistics are not finite."""
  if not _all_finite(variables):
    raise FloatingPointError(
      f"the parameters are no longer finite after step {step}; {DIVERGENCE_ADVICE}"
    )


@jax.jit
def _all_finite(tree) -> jax.Array:
  return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def resolve(config: Config, num_classes: int) -> Config:
  """Fills in what depends on the data and the machine: number of classes and dtype."""
  model = dataclasses.replace(
    config.model,
    num_classes=config.model.num_classes or num_classes,
    dtype=str(backend.compute_dtype(config.model.dtype)),
  )
  return dataclasses.replace(config, model=model)


def resolve_model(config: Config) -> tuple[Config, ResNet]:
  """Checks settings that have no data; the classes are the architecture's own.

  Raises:
    ValueError: as `check`.
  """
  check(config)
  config = resolve(config, create_model(config.model.name).num_classes)
  return config, build_model(config)


def build_model(config: Config) -> ResNet:
  """Builds the model of resolved settings, such as those of a saved `config.json`."""
  return create_model(**dataclasses.asdict(config.model))


def describe(results: dict[str, float]) -> str:
  """Says an evaluation in a line."""
  top5 = f", top-5 {100 * results['top5']:.2f} %" if "top5" in results else ""
  return (
    f"top-1 {100 * results['top1']:.2f} %{top5}, loss {results['loss']:.4f} "
    f"on {results['count']:,} images"
  )


def _headline(config, plan, state, train_set, eval_set) -> str:
  params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  devices = jax.tree.leaves(state.params)[0].sharding.device_set
  kind = next(iter(devices)).device_kind
  done = f", {int(state.step)} of them done" if state.step else ""
  return (
    f"{config.model.name} ({params:,} parameters, {config.model.dtype}) on "
    f"{config.data.name}: {train_set.num_examples:,} training and "
    f"{eval_set.num_examples:,} evaluation images\n"
    f"{plan.num_steps} steps of {config.batch_size} images{done}, on "
    f"{len(devices)} {kind} device{'s' * (len(devices) > 1)}"
  )
