"""Computes a network's outputs for the images of an evaluation, in any engine.

Shapes: N images, B batch, V views, K classes.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_jax import kernels
from resnet_jax.data.batch import Batch
from resnet_jax.data.batches.preprocess import create_normalize
from resnet_jax.evaluation.corruptions import Corrupt
from resnet_jax.inference import engines
from resnet_jax.models.folding import folded_model
from resnet_jax.models.variables import Variables
from resnet_jax.runs.metrics import Metrics, add_metrics
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import Array, Bool, Float32, Int, Shaped, UInt
from resnet_jax.runtime.mesh import batch_sharding, replicated
from resnet_jax.training.evaluator import Prepared
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.task_metrics import compute_metrics

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # Logits, labels and masks.
# Images of one pass -> their views.
ViewsOf = Callable[[Array], list[Array]]
# (feed, number of the batch, place of its first image, corrupt) -> of that batch.
_OfBatch = Callable[[Any, int, int, Corrupt | None], Arrays]


def create_pass(
  experiment: Experiment, variables: Variables, views_of: ViewsOf, engine: str = "jax"
) -> Callable[[Corrupt | None], Arrays]:
  """Returns a function that gives logits, labels and index of all readable images.

  The logits are [V, N, K] for V views.

  Args:
    experiment: gives the network and the images.
    variables: {"params": ..., "batch_stats": ...}.
    views_of: traced function that returns the views.
    engine: see `engines.py`.
  """
  if engine == "jax":
    of_batch = _in_jax(experiment, variables, views_of)
  else:
    of_batch = _in_engine(experiment, variables, views_of, engine)

  def answer(corrupt: Corrupt | None) -> Arrays:
    parts, first = [], 0
    for feed, count in experiment.eval_data.eval_chunks():
      for number in range(count):
        parts.append(of_batch(feed, number, first, corrupt))
        first += len(parts[-1][2])
    logits, labels, masks = zip(*parts, strict=True)
    mask = np.concatenate(masks)
    every = np.concatenate(logits, axis=1)[:, mask]
    return every, np.concatenate(labels)[mask], np.flatnonzero(mask)

  return answer


def evaluate(prepared: Prepared, engine: str = "jax") -> dict[str, float]:
  """Returns the results of `Prepared.evaluate`, from the outputs of an engine.

  Raises:
    UserError: see `engines.create_run`.
    FloatingPointError: a metric is not finite.
  """
  if engine == "jax":
    return prepared.evaluate()
  experiment = prepared.experiment
  of_batch = _in_engine(experiment, prepared.variables, lambda x: [x], engine)
  measure = jax.jit(functools.partial(compute_metrics, experiment.task))

  def eval_chunk(_: Variables, feed: Any, count: Any) -> Metrics:
    found: list[Metrics] = []
    for number in range(count):
      logits, labels, mask = of_batch(feed, number, 0, None)
      found.append(measure(logits[0], {"label": labels, "mask": mask}))
    return functools.reduce(add_metrics, found)

  return prepared.evaluate(eval_chunk)


def compiled(experiment: Experiment, function: Callable[..., Any]) -> Any:
  """Returns a jitted function, whose results are whole on every device."""
  return compilation.jit(
    kernels.traced_with(experiment.kernels, function),
    dtype=experiment.config.model.dtype,
    out_shardings=replicated(experiment.mesh),
  )


def _in_jax(
  experiment: Experiment, variables: Variables, views_of: ViewsOf
) -> _OfBatch:
  model = folded_model(experiment.model)
  normalize = create_normalize(experiment.config.data)
  take_batch: Callable[..., Batch] = experiment.eval_data.take_batch

  def forward(
    variables: Variables, pixels: UInt[Array, "b h w c"]
  ) -> Float32[Array, "v b k"]:
    found: list[Any] = []
    for view in views_of(pixels):
      found.append(model.apply(variables, normalize(view), train=False))
    return jnp.stack(found)

  def run(
    variables: Variables, feed: Any, number: Int[Array, ""]
  ) -> tuple[Float32[Array, "v b k"], Shaped[Array, "b ..."], Bool[Array, " b"]]:
    batch = take_batch(feed, number)
    return forward(variables, batch["image"]), batch["label"], batch["mask"]

  # A function that is not called is not compiled.
  whole, take, rest = (compiled(experiment, f) for f in (run, take_batch, forward))
  folded = experiment.fold(jax.device_put(variables, replicated(experiment.mesh)))

  def of_batch(feed: Any, number: int, first: int, corrupt: Corrupt | None) -> Arrays:
    if corrupt is None:
      return cast(Arrays, jax.device_get(whole(folded, feed, number)))
    batch = jax.device_get(take(feed, number))

    def rows(index: Any) -> np.ndarray:  # Those of one device.
      start, end, _ = index[0].indices(len(batch["image"]))
      return corrupt(batch["image"][start:end], first + start)

    shape, split = batch["image"].shape, batch_sharding(experiment.mesh)
    images = jax.make_array_from_callback(shape, split, rows)
    return jax.device_get(rest(folded, images)), batch["label"], batch["mask"]

  return of_batch


def _in_engine(
  experiment: Experiment, variables: Variables, views_of: ViewsOf, engine: str
) -> _OfBatch:
  normalize = create_normalize(experiment.config.data)

  def forward(
    model: nn.Module, variables: Variables, images: UInt[Array, "b h w c"]
  ) -> Any:
    return {"logits": model.apply(variables, normalize(images), train=False)}

  run = engines.create_run(
    engine,
    experiment.model,
    variables,
    forward,
    dtype=experiment.config.model.dtype,
    unit=1.0,
  )
  take = compiled(experiment, experiment.eval_data.take_batch)
  split = jax.jit(views_of)

  def of_batch(feed: Any, number: int, first: int, corrupt: Corrupt | None) -> Arrays:
    batch = jax.device_get(take(feed, number))
    images = batch["image"] if corrupt is None else corrupt(batch["image"], first)
    views = [run(np.asarray(view))["logits"] for view in split(images)]
    return np.stack(views), batch["label"], batch["mask"]

  return of_batch
