"""Evaluates a training state, a run, or weights from elsewhere."""

import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax import weights
from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.config.factories import part_name
from resnet_jax.config.preprocessing import check_fits, preprocessing_of
from resnet_jax.config.schema import Config
from resnet_jax.data import Source, is_in_memory
from resnet_jax.data.pipelines.single_pass import find_images
from resnet_jax.data.sources.opening import open_source
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables, image_channels
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.facts import read_facts
from resnet_jax.runs.metrics import HostMetrics, add_metrics, to_host
from resnet_jax.runs.run_dir import load_class_names, load_run_config
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import replicated
from resnet_jax.training.class_pairing import pair_classes
from resnet_jax.training.eval_steps import EvalChunk
from resnet_jax.training.experiment import Devices, Experiment
from resnet_jax.training.resolved_config import (
  check_settings,
  resolve_model,
  with_num_classes,
)
from resnet_jax.training.task_metrics import results_of
from resnet_jax.weights import imagenet

# Settings that may name code; every evaluation of a run uses that code.
USED = ("model.factory", "task")


def evaluate(
  experiment: Experiment, variables: Variables, eval_chunk: EvalChunk | None = None
) -> dict[str, float]:
  """Evaluates on every image of `experiment.eval_data`, each counted once.

  Args:
    experiment: gives the model, the task and the images.
    variables: {"params": ..., "batch_stats": ...}.
    eval_chunk: computes the metrics; None is `experiment.eval_chunk`.

  Returns:
    "loss" in nats, "top1" and, for more than 5 classes, "top5" as fractions, or the
    metrics of a custom task; "count", "images_per_s".
  """
  start = time.monotonic()
  # Variables that the user restored may be on one device.
  variables = jax.device_put(variables, replicated(experiment.mesh))
  variables = experiment.fold(variables)
  run: Any = eval_chunk or experiment.eval_chunk
  collects = hasattr(experiment.task, "found")
  total: HostMetrics | None = None
  collected: list[Mapping[str, np.ndarray]] = []

  def calls() -> Iterator[tuple[Any, Any]]:
    for feed, count in experiment.eval_data.eval_chunks():
      if collects:
        yield from (run(variables, feed, number) for number in range(count))
      else:
        yield run(variables, feed, count), None

  # The host is at most one call ahead of the device, because each call that waits holds
  # its images in memory.
  ahead = itertools.chain(calls(), [(None, None)])
  for (metrics, found), _ in itertools.pairwise(ahead):
    if collects:
      collected.append(jax.device_get(found))
    sums = to_host(metrics)
    total = add_metrics(total, sums) if total else sums
  assert total is not None  # No split is empty.
  values = results_of(experiment.task, total, _join(collected) if collects else None)
  return values | {"images_per_s": values["count"] / (time.monotonic() - start)}


def _join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns the arrays of all valid examples."""
  whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  mask = whole.pop("mask")
  return {name: array[mask] for name, array in whole.items()}


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What an evaluation needs.

  Attributes:
    experiment: gives the model, the task and the images.
    variables: {"params": ..., "batch_stats": ...}.
    source: the images, labelled with the network's class indices.
    class_names: names of the network's outputs in order; () if they are not known.
    step: the completed steps of a run; None for weights from elsewhere.
  """

  experiment: Experiment
  variables: Variables
  source: Source
  class_names: tuple[str, ...]
  step: int | None = None

  def evaluate(self, eval_chunk: EvalChunk | None = None) -> dict[str, float]:
    """Returns the results of `evaluate`.

    Args:
      eval_chunk: see `evaluate`.

    Raises:
      FloatingPointError: a metric is not finite.
    """
    return check_results(evaluate(self.experiment, self.variables, eval_chunk))


def evaluate_run(
  config: Config,
  workdir: str,
  which: str = "latest",
  devices: Devices | None = None,
  trust_code: bool = False,
) -> tuple[int, dict[str, float]]:
  """Evaluates a saved state of a run; see `prepare_run`.

  Returns:
    (completed steps, the results of `evaluate`).

  Raises:
    FloatingPointError: a metric is not finite.
  """
  prepared = prepare_run(config, workdir, which, devices, trust_code)
  assert prepared.step is not None
  return prepared.step, prepared.evaluate()


def prepare_run(
  config: Config,
  workdir: str,
  which: str = "latest",
  devices: Devices | None = None,
  trust_code: bool = False,
  labelled: bool = True,
) -> Prepared:
  """Reads a saved state of a run, and opens the images.

  Args:
    config: the settings, with the run's model; `data` may name other images.
    workdir: the run directory.
    which: "latest", "best" (by the task's `best_metric`), or a step.
    devices: None is all of them.
    trust_code: whether to allow code that the run's settings name.
    labelled: whether the images have one label each, which the caller uses. Else all
      images of a folder are taken, whatever its subfolders are.

  Raises:
    UserError: a setting is wrong, does not fit the data or differs from the run's, or
      the images have other classes.
    NotFoundError: the run, the state or the data set does not exist.
  """
  workdir = os.path.expanduser(workdir)
  saved = load_run_config(workdir, trust_code, USED)
  if (config.data.factory, config.data.name) == (saved.data.factory, saved.data.name):
    load_run_config(workdir, trust_code, ["data.factory"])
  config = with_num_classes(config, saved.model.num_classes)
  for field, value in dataclasses.asdict(saved.model).items():
    given = getattr(config.model, field)
    if field not in ("dtype", "scan", "remat") and given != value:
      raise UserError(f"config.model.{field}={given!r}, but the run has {value!r}")
  check_settings(config)  # Before any image is read.
  has_data = bool(saved.data.name or saved.data.factory)
  names = load_class_names(workdir)
  if not names and not has_data and config.model.num_classes == 1000:
    names = imagenet.class_names()  # As for a file of weights.
  source = _open_images(config, names, f"the run {workdir}", has_data, labelled)
  if shape := read_facts(workdir).image_shape:
    config = _with_channels(config, source, shape[-1])
  experiment = Experiment.create(
    config, devices=devices, eval_data=source, class_names=()
  )
  with CheckpointStore(workdir) as store:
    step, variables = store.restore_model(which, replicated(experiment.mesh))
  if not shape and isinstance(experiment.model, ResNet):
    _with_channels(config, source, image_channels(variables))
  return Prepared(experiment, variables, source, names, step)


def prepare_weights(
  config: Config,
  path: str,
  devices: Devices | None = None,
  ema: bool | None = None,
  new_head: bool = False,
  labelled: bool = True,
) -> Prepared:
  """Reads weights from elsewhere, and opens the images.

  The weights were not trained on these images. If a folder or list has no splits and
  `data.eval_split` is "", all of its images are evaluated.

  Args:
    config: the settings. If `model.num_classes` is 0, the architecture's number is
      used; `data` names the images, what their labels are, and their preprocessing.
    path: see `weights.load`.
    devices: None is all of them.
    ema: see `weights.load`.
    new_head: see `weights.load`.
    labelled: see `prepare_run`.

  Raises:
    UserError: a setting is wrong or does not fit the data, the weights do not fit the
      model, or the images have other classes.
    NotFoundError: the weights or the data set do not exist.
  """
  labels, own = config.data.labels, None
  if labels in DENSE_LABELS:
    _, own, _ = weights.complete_dense(path, labels, config.model, ema)
  else:
    config, model = resolve_model(config)
  variables = weights.load(path, own or model, ema=ema, new_head=new_head)
  names: tuple[str, ...] = ()
  if not new_head:
    names = weights.known_class_names(path, config.model.num_classes, labels)
  source = _open_images(config, names, path, False, labelled)
  config = _with_channels(config, source, image_channels(variables))
  experiment = Experiment.create(
    config, devices=devices, model=own, eval_data=source, class_names=()
  )
  check_fits(preprocessing_of(config.data), image_channels(variables))
  return Prepared(experiment, variables, source, names)


def _open_images(
  config: Config,
  class_names: Sequence[str],
  owner: str,
  has_data: bool,
  labelled: bool,
) -> Source:
  """Opens the images to evaluate, labelled with the network's class indices.

  Args:
    config: the settings.
    class_names: the network's class names; () if they are not known.
    owner: the name of the network in messages.
    has_data: whether the network may have been trained on a part of the images.
    labelled: see `prepare_run`.
  """
  data, num_classes = config.data, config.model.num_classes
  if not has_data and not data.eval_split:
    data = dataclasses.replace(data, val_share=1.0)
  if not labelled and data.name == "folder" and os.path.isdir(data.dir):
    return find_images([data.dir])
  if data.labels in DENSE_LABELS:  # Their sources compare the classes.
    return open_source(data, data.eval_split, class_names)
  source = open_source(data, data.eval_split)
  # In other tasks, labels need not be classes.
  if not labelled or (not class_names and config.task):
    return source
  in_order = bool(data.factory) or data.name != "folder"
  return pair_classes(source, class_names, num_classes, owner, in_order)


def _with_channels(config: Config, source: Source, needed: int) -> Config:
  """Returns settings that decode images to the channels that a network needs.

  Raises:
    UserError: the images are in memory, and have another number of channels.
  """
  if not is_in_memory(source):
    data = dataclasses.replace(config.data, channels=needed)
    return dataclasses.replace(config, data=data)
  if (given := source.images.shape[-1]) != needed:
    name = part_name(config.data.factory, config.data.name)
    raise UserError(
      f"the images of {name!r} have {given} channels, the model takes {needed}"
    )
  return config


def check_results(results: dict[str, float]) -> dict[str, float]:
  """Raises `FloatingPointError` if a metric is not finite."""
  for name, value in results.items():
    if not math.isfinite(value):
      raise FloatingPointError(
        f"the evaluation gives {name}={value}, as outputs of the network are not "
        "finite; check its weights, and the mean and std of the images"
      )
  return results


def describe(results: dict[str, float]) -> str:
  """Describes an evaluation in one line."""
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
  scores = ", ".join([*known, *others])
  return f"{scores}{' on ' * bool(scores)}{results['count']:,} images"
