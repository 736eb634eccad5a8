"""A trained network with all that belongs to it, from a run or from a file of weights.

Letters: B batch, S side of the images, C channels, K classes, F features.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from resnet_jax import weights
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.config.schema import Config, DataConfig, ModelConfig
from resnet_jax.data.batches.preprocess import normalize
from resnet_jax.data.pipelines.host_batches import HostBatch
from resnet_jax.inference.convert import preprocessing_of
from resnet_jax.models.registry import build_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables, image_channels
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runtime import compilation
from resnet_jax.runtime.mesh import batch_sharding, replicated
from resnet_jax.training.experiment import resolve_model


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained network with all that belongs to it.

  Attributes:
    name: of the architecture.
    model: the network.
    variables: {"params": ..., "batch_stats": ...} in the named layout.
    preprocessing: of images.
    class_names: in the order of the logits.
    max_pixels: of an image file; one with more counts as unreadable.
  """

  name: str
  model: ResNet
  variables: Variables
  preprocessing: Preprocessing
  class_names: tuple[str, ...]
  max_pixels: int = DataConfig().max_pixels

  @property
  def channels(self) -> int:
    """C: 1 is grey, 3 is RGB."""
    return image_channels(self.variables)

  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    """Returns what the network makes of images that are resized and cropped.

    Args:
      images: [B, H, W, C] uint8; grey ones for a network of colour, or the reverse.

    Returns:
      "probabilities": [B, K] float32; "pooled": [B, F] float32, what the head sees;
      "c2" to "c5": see `Backbone`.

    Raises:
      ValueError: other channels.
    """
    return self.apply(self.variables, images)

  def apply(
    self, variables: Variables, images: jax.Array, model: ResNet | None = None
  ) -> dict[str, jax.Array]:
    """Does the same with variables, or a model, that lie or compute otherwise."""
    preprocessing, model = self.preprocessing, model or self.model
    given = images.shape[-1]
    if given == 1 and self.channels == 3:
      images = images.repeat(3, axis=-1)
    elif given == 3 and self.channels == 1:
      # ITU-R 601, as Pillow's "L" and `tf.image.rgb_to_grayscale`.
      grey = images.astype(jnp.float32) @ jnp.array([0.299, 0.587, 0.114])
      images = jnp.round(grey)[..., None]
    elif given != self.channels:
      raise ValueError(
        f"images have {given} channels, the network takes {self.channels}"
      )
    images = normalize(images, preprocessing.mean, preprocessing.std)
    maps: Any = model.apply(variables, images, method="stages")
    # As the network does it itself.
    pooled = maps[-1].astype(jnp.float32).mean(axis=(1, 2))
    logits: Any = model.apply(variables, pooled, method=lambda net, x: net.head(x))
    named = {f"c{i}": x for i, x in enumerate(maps, start=2)}
    return {"probabilities": jax.nn.softmax(logits), "pooled": pooled, **named}


def load_run(workdir: str, which: str = "latest") -> Trained:
  """Loads a run.

  Args:
    workdir: its directory.
    which: "latest", "best" or a step.

  Raises:
    FileNotFoundError: no such run or checkpoint.
    OSError: the checkpoint is damaged.
    ValueError: the run's settings are damaged.
  """
  config = run_dir.load_run_config(workdir)
  with CheckpointStore(workdir) as store:
    _, variables = store.restore_model(which)
  model = build_model(config)
  return Trained(
    config.model.name,
    model,
    variables,
    preprocessing_of(config.data),
    weights.all_class_names(run_dir.load_class_names(workdir), model.num_classes),
    config.data.max_pixels,
  )


def load_weights(path: str, model: ModelConfig) -> Trained:
  """Loads a file of weights, with what `weights.read_preprocessing` says of it.

  Args:
    path: as for `weights.load`.
    model: the architecture; `num_classes` 0 is its own.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: an unknown architecture, or weights that do not fit it.
  """
  config, network = resolve_model(Config(model=model, data=DataConfig(name="")))
  return Trained(
    config.model.name,
    network,
    weights.load(path, network),
    weights.read_preprocessing(path, network),
    weights.read_class_names(path, network.num_classes),
  )


def run_batches(
  trained: Trained,
  batches: Iterator[HostBatch],
  outputs: Callable[[dict[str, jax.Array]], Any],
  mesh: Mesh,
) -> Iterator[tuple[HostBatch, Any]]:
  """Yields batches with what the network makes of them.

  The next batch is read while the devices compute, so that three at most are held.

  Args:
    trained: the network.
    batches: as of `read_batches`; B is a multiple of the number of devices.
    outputs: function of what `Trained` returns, traced: what of it is wanted.
    mesh: the devices.
  """
  variables = jax.device_put(trained.variables, replicated(mesh))
  run = compilation.jit(
    lambda variables, images: outputs(trained.apply(variables, images)),
    dtype=trained.model.dtype,
    out_shardings=batch_sharding(mesh),
  )
  before = None
  for batch in batches:
    images = jax.device_put(batch["image"], batch_sharding(mesh))
    now = batch, run(variables, images)
    if before is not None:
      yield before[0], jax.device_get(before[1])
    before = now
  if before is not None:
    yield before[0], jax.device_get(before[1])
