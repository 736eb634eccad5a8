"""Fine-tuning: training starts from trained weights, with a new head or theirs."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from resnet_jax import weights
from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.config.preprocessing import (
  Preprocessing,
  are_equal,
  for_channels,
  preprocessing_of,
)
from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.models.building import build_model
from resnet_jax.models.detection import RetinaNet
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.scan_layout import laid_out_as
from resnet_jax.models.segmentation import Segmenter
from resnet_jax.models.variables import (
  Variables,
  abstract_variables,
  image_channels,
  with_channels,
)
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runtime.errors import NotFoundError, UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.training.state import TrainState
from resnet_jax.weights import imagenet
from resnet_jax.weights.architecture import check_same, describe


def load_start(
  source: str,
  model: nn.Module,
  image_shape: tuple[int, int, int],
  data: DataConfig,
  head: bool = False,
  class_names: Sequence[str] = (),
) -> Variables:
  """Reads trained weights.

  The backbone of a segmenter or a detector starts from a classifier's weights too.
  Warns if the weights expect another mean, standard deviation or order of channels.

  Args:
    source: as `config.init_from`.
    model: the network to fine-tune; without `head`, its number of classes does not
      matter.
    image_shape: (H, W, C) of its images.
    data: settings that say how the images are normalised.
    head: whether to take the head too, as `config.init_head`.
    class_names: names of the images' classes, in order; () if they are not known.

  Returns:
    {"params": ..., "batch_stats": ...} in the named layout; without "head" if `head` is
    False. A segmenter or a detector then lacks only the last layers, or has nothing but
    "backbone".

  Raises:
    ValueError: the weights do not fit the model, and the message names the arrays; or
      their head is for other classes.
    FileNotFoundError: the run, checkpoint or file does not exist.
    OSError: the checkpoint is damaged.
  """
  source, saved = find_weights(source)
  is_dense = isinstance(model, Segmenter | RetinaNet)
  if is_dense and _labels(source, saved) not in DENSE_LABELS:
    if head:
      raise UserError(
        f"config.init_head=True needs the weights of a whole {type(model).__name__}; "
        f"config.init_from={source!r} has only a backbone for it"
      )
    body = load_start(source, model.net, image_shape, data)
    return {name: {"backbone": tree} for name, tree in body.items()}
  if saved is not None:
    workdir, which = run_dir.split_checkpoint(source)
    with CheckpointStore(workdir) as store:
      _, variables = store.restore_model(which or "latest")
    if not head:
      variables = _without_head(model, variables)
  else:
    variables = weights.load(source, model, head=head)
  if isinstance(model, ResNet) and (given := image_channels(variables)) == 3:
    if given != image_shape[2]:
      warn(
        f"the weights of config.init_from are for images of {given} channels, and the "
        f"images have {image_shape[2]}: the first kernel is adapted, see "
        "`weights.with_channels`"
      )
    variables = with_channels(variables, image_shape[2])
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = abstract_variables(model, image_shape, device)
  if not head:
    wanted = _without_head(model, wanted)
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
      f"{more}; use the config.model.* of those weights, and images with as many "
      "channels as they were trained on" + ", and as many classes" * head
    )
  if head:
    labels = _labels(source, saved)
    _check_classes(source, saved is not None, labels, model, class_names)
  if saved is not None and not saved.model.factory and isinstance(model, ResNet):
    former = build_model(saved)
    assert isinstance(former, ResNet)
    check_same(describe(former), model, f"config.init_from={source!r}")
  preprocessing = read_preprocessing(source, model)
  preprocessing = for_channels(preprocessing, image_shape[2])
  for name in ("mean", "std", "channel_order"):
    theirs, ours = getattr(preprocessing, name), getattr(data, name)
    if theirs != ours and (isinstance(ours, str) or not are_equal(theirs, ours)):
      warn(
        f"the weights of config.init_from expect images with {name}={theirs}, but "
        f"config.data.{name}={ours}; an empty --config.data.{name}= takes the "
        "value of the weights"
      )
  return variables


def _labels(source: str, saved: Config | None) -> str:
  return saved.data.labels if saved else weights.find_labels(source)


def _without_head(model: nn.Module, variables: Variables) -> Variables:
  """Returns the variables without the head; of dense heads, only the last is left out.

  That is the layer whose shape depends on the number of classes.
  """
  if not isinstance(model, Segmenter | RetinaNet):
    params = {k: v for k, v in variables["params"].items() if k != "head"}
    return variables | {"params": params}
  flat = traverse_util.flatten_dict(variables["params"])
  end = slice(-1 - len(model.HEAD), -1)
  kept = {path: leaf for path, leaf in flat.items() if path[end] != model.HEAD}
  return variables | {"params": traverse_util.unflatten_dict(kept)}


def _check_classes(
  source: str, is_run: bool, labels: str, model: Any, class_names: Sequence[str]
) -> None:
  """Raises `UserError` if the head of trained weights is for other classes by name."""
  if is_run:
    theirs = run_dir.load_class_names(run_dir.split_checkpoint(source)[0])
  else:
    theirs = weights.known_class_names(source, model.num_classes, labels)
  # ImageNet's classes have two kinds of names.
  both = [
    imagenet.synsets() if imagenet.are_classes(names) else tuple(names)
    for names in (theirs, class_names)
  ]
  if all(both) and both[0] != both[1]:
    pairs = itertools.zip_longest(*both, fillvalue="no class")
    i, (old, new) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    raise UserError(
      f"config.init_head=True needs images of the same classes in the same order, but "
      f"class {i} is {old!r} in config.init_from={source!r} and {new!r} in the "
      "images; set config.init_head=False for a new head"
    )


def read_preprocessing(source: str, model: nn.Module) -> Preprocessing:
  """Returns the preprocessing that the weights of `config.init_from` expect.

  Args:
    source: as `config.init_from`.
    model: as in `weights.read_preprocessing`.

  Raises:
    UserError: the run or the file is damaged.
    NotFoundError: the run or file does not exist.
  """
  source, saved = find_weights(source)
  if saved is not None:
    return preprocessing_of(saved.data)
  return weights.read_preprocessing(source, model)


def find_weights(
  source: str, setting: str = "config.init_from"
) -> tuple[str, Config | None]:
  """Returns the path of trained weights and, if they belong to a run, its settings.

  Raises:
    NotFoundError: there are no such weights.
    UserError: the settings of the run are damaged.
  """
  source = os.path.expanduser(source)
  weights.check_exists(source, f"{setting}=")
  if not weights.is_run(source):
    return source, None
  saved = run_dir.read_config(run_dir.split_checkpoint(source)[0])
  if saved is None:
    raise NotFoundError(f"{setting}={source!r} holds no run: no config.json")
  return source, saved


def _shapes(tree: Any) -> dict[str, str]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = ("/".join(key.key for key in path[1:]) for path, _ in leaves)
  return dict(zip(names, (str(leaf.shape) for _, leaf in leaves), strict=True))


def start_from(state: TrainState, variables: Variables) -> TrainState:
  """Replaces the variables of a new state by those that `load_start` read."""
  variables = laid_out_as(variables, state.params)

  def put(old: Variables) -> Variables:
    first, flat = (traverse_util.flatten_dict(tree) for tree in (old, variables))
    placed = {
      # Copied, because a step donates the memory of its state.
      path: jnp.copy(jax.device_put(flat.get(path, leaf), leaf.sharding))
      for path, leaf in first.items()
    }
    new: Variables = traverse_util.unflatten_dict(placed)
    return old | new

  ema = None if state.ema is None else put(state.ema)
  variables = put(state.variables)
  # Schedule-free optimisers keep a sequence that begins at the parameters.
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
  opt_state = jax.jit(state.tx.init, out_shardings=shardings)(variables["params"])
  return state.replace(**variables, opt_state=opt_state, ema=ema)
