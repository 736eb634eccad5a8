"""Training that starts from trained weights, with a new head."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax import weights
from resnet_jax.config.preprocessing import preprocessing_of
from resnet_jax.config.schema import DataConfig
from resnet_jax.models.registry import build_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.scan_layout import laid_out_as
from resnet_jax.models.variables import Variables, abstract_variables
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.training.state import TrainState
from resnet_jax.weights.architecture import check_same, describe


def load_start(
  source: str,
  model: nn.Module,
  image_shape: tuple[int, int, int],
  data: DataConfig,
) -> Variables:
  """Reads all but the head of trained weights.

  Says in a line if they expect images of another mean or deviation.

  Args:
    source: as `config.init_from`.
    model: to start; the number of its classes does not matter.
    image_shape: (H, W, C) of its images.
    data: how these are normalised.

  Returns:
    {"params": ..., "batch_stats": ...} in the named layout, without "head".

  Raises:
    ValueError: naming what does not fit the model.
    FileNotFoundError: there is no such run, checkpoint or file.
    OSError: the checkpoint is damaged.
  """
  source = os.path.expanduser(source)
  weights.check_exists(source, "config.init_from=")
  saved = None
  if weights.is_run(source):
    workdir, which = run_dir.split_checkpoint(source)
    saved = run_dir.read_config(workdir)
    if saved is None:
      raise NotFoundError(f"config.init_from={source!r} holds no run: no config.json")
    with CheckpointStore(workdir) as store:
      _, variables = store.restore_model(which or "latest")
    variables["params"].pop("head", None)
  else:
    variables = weights.load(source, model, head=False)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = abstract_variables(model, image_shape, device)
  wanted["params"].pop("head", None)
  found, needed = _shapes(variables), _shapes(wanted)
  problems = [
    f"{name} is {found.get(name, 'missing')} and must be {needed.get(name, 'absent')}"
    for name in sorted(found | needed)
    if found.get(name) != needed.get(name)
  ]
  if problems:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    raise UserError(
      f"config.init_from={source!r} does not fit the model: {'; '.join(problems[:3])}"
      f"{more}; set config.model.* as they were there, and images of as many channels"
    )
  if saved is None:
    preprocessing = weights.read_preprocessing(source, model)
  else:
    preprocessing = preprocessing_of(saved.data)
    former = None if saved.model.factory else build_model(saved)
    if isinstance(former, ResNet) and isinstance(model, ResNet):
      check_same(describe(former), model, f"config.init_from={source!r}")
  theirs, ours = (preprocessing.mean, preprocessing.std), (data.mean, data.std)
  if theirs != ours:
    warn(
      "the weights of config.init_from expect images of mean={} and std={}, but "
      "config.data has mean={} and std={}".format(*theirs, *ours)
    )
  return variables


def _shapes(tree: Any) -> dict[str, str]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = ("/".join(key.key for key in path[1:]) for path, _ in leaves)
  return dict(zip(names, (str(leaf.shape) for _, leaf in leaves), strict=True))


def start_from(state: TrainState, variables: Variables) -> TrainState:
  """Returns a first state with all that `load_start` read in place of its own."""
  variables = laid_out_as(variables, state.params)

  def put(old: Variables) -> Variables:
    # Copied, as a step takes over the memory of its state.
    merged = {name: old[name] | variables[name] for name in old}
    placed: Variables = jax.tree.map(
      lambda new, first: jnp.copy(jax.device_put(new, first.sharding)), merged, old
    )
    return placed

  ema = None if state.ema is None else put(state.ema)
  return state.replace(**put(state.variables), ema=ema)
