"""Measures the responses of a network's layers, and the gradients of their kernels.

Letters: B batch, H height, W width, C channels.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from resnet_jax.data.batch import Batch
from resnet_jax.models.scan_layout import to_named
from resnet_jax.models.variables import Variables
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runtime.arrays import Array, Float, Float32
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.task_metrics import compute_metrics
from resnet_jax.training.tasks import Classification

_NORM = re.compile(r"bn\d*")


def layer_responses(
  model: nn.Module, variables: Variables, images: Float[Array, "b h w c"]
) -> dict[str, float]:
  """Returns the standard deviation of each layer's response (He et al. 2015, figure 7).

  The response is the output of the batch norm after each convolution of the stem and
  the blocks, before ReLU and the shortcut. Batch norm uses the batch's statistics.

  Args:
    model: the network.
    variables: {"params": ..., "batch_stats": ...} in the named layout.
    images: normalised.

  Returns:
    {path of the norm: standard deviation over B, H, W and C}, from the first layer to
    the last. A path is such as "stage1/block2/bn1".
  """

  def is_norm(module: nn.Module, method: str) -> bool:
    name = module.name or ""
    return method == "__call__" and _NORM.fullmatch(name) is not None

  @jax.jit
  def respond(variables: Variables, images: Array) -> dict[str, Float32[Array, ""]]:
    # Train mode: in deep plain nets, running statistics may differ from the batch's.
    _, kept = model.clone(scan=False, remat=False).apply(
      variables,
      images,
      train=True,
      capture_intermediates=is_norm,
      mutable=["intermediates", "batch_stats"],
      rngs={"dropout": jax.random.key(0)},
    )
    outputs = traverse_util.flatten_dict(kept["intermediates"], sep="/")
    return {
      path.removesuffix("/__call__"): jnp.std(values[0].astype(jnp.float32))
      for path, values in outputs.items()
      if "shortcut" not in path
    }

  return _in_order(respond(variables, images))


def layer_gradients(
  model: nn.Module, variables: Variables, batch: Batch
) -> dict[str, float]:
  """Returns the norm of the loss's gradient for each layer's kernel, in train mode.

  Args:
    model: the network.
    variables: as in `layer_responses`.
    batch: "image" [B, H, W, C] normalised, "label" [B], "mask" [B].

  Returns:
    {path of the convolution: L2 norm}, from the first layer to the last, without
    shortcuts and head. A path is such as "stage1/block2/conv1".
  """

  @jax.jit
  def norms(variables: Variables, batch: Batch) -> dict[str, Float32[Array, ""]]:
    def loss_fn(params: dict[str, Any]) -> Array:
      logits, _ = model.clone(scan=False).apply(
        variables | {"params": params},
        batch["image"],
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
      )
      metrics = compute_metrics(Classification(logits.shape[-1]), logits, batch)
      return metrics["loss"] / metrics["count"]

    gradients = jax.grad(loss_fn)(variables["params"])
    return {
      path.removesuffix("/kernel"): jnp.linalg.norm(gradient.astype(jnp.float32))
      for path, gradient in traverse_util.flatten_dict(gradients, sep="/").items()
      if re.search(r"conv\d*/kernel$", path) and "shortcut" not in path
    }

  return _in_order(norms(variables, batch))


def _in_order(values: dict[str, Float32[Array, ""]]) -> dict[str, float]:
  """Sorts paths by their numbers, the stem first."""

  def place(path: str) -> tuple[bool, list[int]]:
    return "stem" not in path, [int(number) for number in re.findall(r"\d+", path)]

  return {path: float(values[path]) for path in sorted(values, key=place)}


def measure_responses(workdir: str, trust_code: bool = False) -> dict[str, float]:
  """Returns `layer_responses` of a run's newest state, on a training batch.

  Args:
    workdir: the run directory.
    trust_code: whether to allow code outside this package that the run names.
  """
  model, load, batch = _open(workdir, trust_code)
  return layer_responses(model, load("latest"), batch["image"])


def measure_gradients(
  workdir: str, trust_code: bool = False
) -> dict[str, dict[str, float]]:
  """Returns {step: `layer_gradients` on a training batch}.

  Step 0 is a new random state, not the one that the run started from. The other steps
  are the run's checkpoints.

  Args:
    workdir: the run directory.
    trust_code: whether to allow code outside this package that the run names.
  """
  model, load, batch = _open(workdir, trust_code)
  key = jax.random.key(run_dir.load_run_config(workdir, trust_code).seed)
  first = to_named(jax.jit(model.init)(key, batch["image"][:1]))
  steps = {str(step): load(str(step)) for step in run_dir.saved_steps(workdir)}
  return {
    step: layer_gradients(model, variables, batch)
    for step, variables in {"0": first, **steps}.items()
  }


def _open(
  workdir: str, trust_code: bool
) -> tuple[nn.Module, Callable[[str], Variables], Batch]:
  """Returns a run's model, a loader of its states, and a batch of training images.

  The batch is shuffled and normalised, but not augmented.
  """
  config = run_dir.load_run_config(workdir, trust_code)
  config.kernels = "auto"  # For this machine, not the one that trained.
  experiment = Experiment.create(config, devices=jax.local_devices()[:1])
  data, key = experiment.train_data, jax.random.key(config.seed)
  _, feed, _ = next(iter(data.train_chunks(key, 0, experiment.plan)))
  batch = jax.jit(data.take_batch)(feed, jnp.int32(0))
  batch["image"] = experiment.preprocess(batch["image"], None)

  def load(step: str) -> Variables:
    with CheckpointStore(workdir) as store:
      return store.restore_model(step)[1]

  return experiment.model, load, batch


# (run directory, whether to trust its code) -> measurement.
MEASUREMENTS: dict[str, Callable[[str, bool], Any]] = {
  "responses": measure_responses,
  "gradients": measure_gradients,
}
