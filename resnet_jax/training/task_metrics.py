"""The metrics of a task: sums over the examples of a batch, and results of the sums."""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.batch import Batch
from resnet_jax.runs.metrics import Metrics, summarize
from resnet_jax.runtime.arrays import Array, Bool, Float32, Shaped
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.tasks import RESERVED, Task, label_of, outputs_of

# Name -> array of all examples, [N, ...].
Found = Mapping[str, np.ndarray]


def compute_metrics(
  task: Task,
  logits: Any,
  batch: Batch,
  targets: Float32[Array, "b ..."] | None = None,
  train: bool = False,
) -> Metrics:
  """Sums loss and metrics over the valid examples of a batch.

  Args:
    task: defines the loss and the metrics.
    logits: the network's outputs.
    batch: its `label` and `mask` are used.
    targets: the targets of the loss; None is `task.targets` of the labels.
    train: as in `Task.loss`.

  Returns:
    "loss", the sums of `task.metrics`, and "count", the number of valid examples.
  """
  labels, mask = batch["label"], batch["mask"]
  label = label_of(task)
  examples = {len(leaf) for leaf in jax.tree.leaves(logits)} | {len(labels)}
  assert examples == {len(mask)} and label.fits(labels.shape[1:]), (
    f"{examples} outputs and labels of {labels.shape[1:]}, but {len(mask)} in the mask "
    f"and labels of {label.shape}"
  )
  chex.assert_type([labels, mask], [label.dtype.type, bool])
  if targets is None:
    targets = task.targets(labels)
  own = task.metrics(logits, labels)
  if taken := RESERVED & own.keys():
    raise UserError(
      f"{type(task).__name__}.metrics returns {', '.join(sorted(taken))}, which "
      "training reports itself; choose another name"
    )
  values = {
    "loss": task.loss(logits, targets, train),
    **own,
    "count": jnp.ones_like(mask),
  }
  return {name: _sum(value, mask) for name, value in values.items()}


def _sum(values: Shaped[Array, "b ..."], mask: Bool[Array, " b"]) -> Array:
  """Adds up the valid examples: counts of several numbers as int32, else float32."""
  is_count = values.ndim > 1 and jnp.issubdtype(values.dtype, jnp.integer)
  where = mask.reshape(mask.shape + (1,) * (values.ndim - 1))
  dtype = jnp.int32 if is_count else jnp.float32
  return jnp.sum(values, axis=0, where=where, dtype=dtype)


def zero_metrics(task: Task) -> Metrics:
  """Returns the metrics of zero examples."""
  label = label_of(task)
  shape = (1, *(size or 1 for size in label.shape))
  batch = {
    "label": jax.ShapeDtypeStruct(shape, label.dtype),
    "mask": jax.ShapeDtypeStruct((1,), jnp.bool_),
  }
  logits = jax.tree.map(
    lambda sizes: jax.ShapeDtypeStruct((1, *(n or 1 for n in sizes)), jnp.float32),
    outputs_of(task),
    is_leaf=lambda node: isinstance(node, tuple),
  )
  shapes = jax.eval_shape(lambda *args: compute_metrics(task, *args), logits, batch)
  zeros: Metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return zeros


def results_of(
  task: Task, sums: Mapping[str, Any], found: Found | None = None
) -> dict[str, float]:
  """Returns what a log and an evaluation report.

  Args:
    task: defines the metrics.
    sums: from `compute_metrics`, added over batches.
    found: `Task.found` of all examples of an evaluation, if the task has it.

  Returns:
    The mean over the examples of each metric that is one number, "count" as an int, and
    what `Task.results` makes of the other metrics.
  """
  host: dict[str, np.ndarray] = jax.device_get(dict(sums))
  single = {name: value for name, value in host.items() if np.ndim(value) == 0}
  values = summarize(single)
  if results := getattr(task, "results", None):
    values |= results(host, found)
  return values
