"""Loads a trained network and its preprocessing from a run or a file of weights.

Letters: B batch, S side of the images, C channels, K classes, F features.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_jax import kernels, weights
from resnet_jax.config.factories import part_name
from resnet_jax.config.preprocessing import (
  Preprocessing,
  check_fits,
  preprocessing_of,
)
from resnet_jax.config.schema import Config, DataConfig, ModelConfig
from resnet_jax.data.batches.preprocess import normalize, to_grey_levels
from resnet_jax.inference.calibration import read_calibration
from resnet_jax.inference.training_record import describe_training
from resnet_jax.models.folding import fold_batch_norm, folded_model, pack_kernels
from resnet_jax.models.operations import softmax
from resnet_jax.models.registry import build_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables, image_channels
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.facts import read_facts
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import AnyArray, Array, Float, Float32, Num, UInt
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.resolved_config import resolve_model


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A trained network with its weights, preprocessing and class names.

  Attributes:
    name: name of the architecture.
    model: the network.
    variables: {"params": ..., "batch_stats": ...} in the named layout.
    preprocessing: how images are resized, cropped and normalised.
    class_names: in the order of the logits.
    channels: C of the images that the network takes: 1 is grey, 3 is RGB. Image files
      are decoded to it, as with `DataConfig.channels`.
    max_pixels: largest number of pixels of an image file; larger ones count as
      unreadable.
    temperature: the logits are divided by it before the softmax (Guo et al. 2017,
      section 4.2).
    labels: what the network predicts, see `DataConfig.labels`.
    thresholds: with "classes", a class is predicted if its probability is at least
      this, for each class; () is 1/2.
    mean, std: with "numbers", the network's outputs are standardised by these.
    training: how the weights were trained, see `describe_training`; {} if not known.
  """

  name: str
  model: nn.Module
  variables: Variables
  preprocessing: Preprocessing
  class_names: tuple[str, ...]
  channels: int = 3
  max_pixels: int = DataConfig().max_pixels
  temperature: float = 1.0
  labels: str = "class"
  thresholds: tuple[float, ...] = ()
  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __call__(
    self, images: UInt[AnyArray, "b h w c"]
  ) -> dict[str, Float[Array, "b ..."]]:
    """Computes the network's outputs for images that are already resized and cropped.

    Batch norm is folded, and a CPU uses the native kernels. `apply` does neither.

    Args:
      images: resized and cropped images; the highest value of uint8 or uint16 counts as
        1. Grey images are converted for a network that takes colour, and the reverse.

    Returns:
      "probabilities": [B, K] float32; or "values", if the network predicts numbers. A
      `ResNet` also returns "pooled": [B, F] float32,
      the input of the head, and the feature maps "c2" to "c5", see `Backbone`.

    Raises:
      UserError: the images have another number of channels, or the number of values in
        mean or std differs from the network's channels.
    """
    folded = self.folded
    variables = folded.packed((*images.shape[:-1], self.channels))
    found: dict[str, Array] = folded._compiled(variables, images)
    return found

  @functools.cached_property
  def folded(self) -> "Classifier":
    """The same classifier with batch norm folded into the convolutions."""
    fold = jax.jit(lambda variables: fold_batch_norm(self.model, variables)[1])
    return dataclasses.replace(
      self, model=folded_model(self.model), variables=fold(self.variables)
    )

  @functools.cached_property
  def packed(self) -> Callable[[tuple[int, ...]], Variables]:
    """Image shape -> the variables as the chosen kernels read them: `pack_kernels`."""
    pack = partial(pack_kernels, self.model, self.variables)
    return functools.lru_cache(maxsize=2)(
      kernels.traced_with(kernels.resolve("auto"), pack)
    )

  @functools.cached_property
  def _compiled(self) -> Callable[..., Any]:
    return compilation.jit(
      kernels.traced_with(kernels.resolve("auto"), self.apply), dtype=self.dtype
    )

  @property
  def has_maps(self) -> bool:
    """Whether the network is a `ResNet`, with logits from its last feature map."""
    model = self.model
    return isinstance(model, ResNet) and type(model).__call__ is ResNet.__call__

  @property
  def answer(self) -> str:
    """The name of the answer in the outputs."""
    return "values" if self.labels == "numbers" else "probabilities"

  @property
  def dtype(self) -> Any:
    """The dtype of the computation."""
    return getattr(self.model, "dtype", jnp.float32)

  def apply(
    self, variables: Variables, images: Num[Array, "b h w c"]
  ) -> dict[str, Float[Array, "b ..."]]:
    """Computes the same as `__call__`, as a pure function.

    It can be traced, exported and differentiated.
    """
    preprocessing, model = self.preprocessing, self.model
    check_fits(preprocessing, self.channels)
    images = to_grey_levels(images)
    given = images.shape[-1]
    if given == 1 and self.channels == 3:
      images = images.repeat(3, axis=-1)
    elif given == 3 and self.channels == 1:
      # ITU-R 601, as in Pillow's "L" and `tf.image.rgb_to_grayscale`.
      grey = images.astype(jnp.float32) @ jnp.array([0.299, 0.587, 0.114])
      images = jnp.round(grey)[..., None]
    elif given != self.channels:
      raise UserError(
        f"images have {given} channels, the network takes {self.channels}"
      )
    images = normalize(
      images, preprocessing.mean, preprocessing.std, preprocessing.channel_order
    )
    if not self.has_maps:  # A custom network, which returns logits only.
      own_logits: Any = model.apply(variables, images, train=False)
      return self._answers(own_logits)
    maps: Any = model.apply(variables, images, method="stages")
    # The same operations as in the network.
    pooled = maps[-1].astype(jnp.float32).mean(axis=(1, 2))
    logits: Any = model.apply(variables, pooled, method=lambda net, x: net.head(x))
    named = {f"c{i}": x for i, x in enumerate(maps, start=2)}
    return {**self._answers(logits), "pooled": pooled, **named}

  def _answers(self, logits: Float32[Array, "b k"]) -> dict[str, Float32[Array, "b k"]]:
    if self.labels == "numbers":
      mean, std = (jnp.array(x)[None] for x in (self.mean, self.std))
      return {"values": logits * std + mean}
    activation = jax.nn.sigmoid if self.labels == "classes" else softmax
    return {"probabilities": activation(logits / self.temperature)}


def load(
  path: str,
  model: str = "",
  *,
  num_classes: int = 0,
  checkpoint: str = "latest",
  trust_code: bool = False,
  ema: bool | None = None,
  calibrated: bool = False,
) -> Classifier:
  """Loads a trained network: a run, or a file of weights.

  Args:
    path: directory of a run, or weights: a name in the package such as
      "resnet20_cifar10", a file or folder for `weights.load`, or hf://owner/name.
    model: architecture of the weights, such as "resnet50", if their file does not name
      it. Not needed for a run.
    num_classes: number of classes; 0 takes it from the file. If the file has another
      number, the network gets a new head, which is not trained, and a line says so.
    checkpoint: checkpoint of a run: "latest", "best" or a step.
    trust_code: whether to allow code outside this package that a run names.
    ema: see `weights.load`; None for a run.
    calibrated: use the temperature or the thresholds that `resnet-jax evaluate
      --fit-temperature` or `--fit-thresholds` stored with the run, or with the weights
      that were converted from it.

  Raises:
    NotFoundError: the run, checkpoint or file does not exist.
    UserError: the weights do not fit, or the path and `model` do not go together.
    OSError: the checkpoint is damaged.
  """
  path = os.path.expanduser(path)
  weights.check_exists(path)
  if weights.is_run(path):
    if model:
      raise UserError(f"{path!r} is a run, which names its own model; omit `model`")
    if ema is not None:
      raise UserError(f"{path!r} is a run, whose config decides on EMA; omit `ema`")
    return load_run(path, checkpoint, trust_code, calibrated)
  config = ModelConfig(name=model, num_classes=num_classes)
  return load_weights(path, config, ema, calibrated)


def load_run(
  workdir: str,
  which: str = "latest",
  trust_code: bool = False,
  calibrated: bool = False,
) -> Classifier:
  """Loads a run.

  Args:
    workdir: the run directory.
    which: "latest", "best" or a step.
    trust_code: whether to allow code outside this package that the run names.
    calibrated: see `load`.

  Raises:
    FileNotFoundError: the run or checkpoint does not exist.
    OSError: the checkpoint is damaged.
    ValueError: the run's settings are damaged.
  """
  config = run_dir.load_run_config(workdir, trust_code, ("model.factory",))
  with CheckpointStore(workdir) as store:
    step, variables = store.restore_model(which)
    evaluation = store.read_evaluation(step)
  shape = read_facts(workdir).image_shape
  return Classifier(
    part_name(config.model.factory, config.model.name),
    build_model(config),
    variables,
    preprocessing_of(config.data),
    weights.all_class_names(
      run_dir.load_class_names(workdir), config.model.num_classes
    ),
    shape[-1] if shape else image_channels(variables),
    config.data.max_pixels,
    labels=config.data.labels,
    mean=config.loss.target_mean or (0.0,),
    std=config.loss.target_std or (1.0,),
    # A run that was converted from a file is at step 0.
    training=describe_training(config, step, evaluation) if step else {},
    **read_calibration(workdir, step, config.data.labels) if calibrated else {},
  )


def load_weights(
  path: str, model: ModelConfig, ema: bool | None = None, calibrated: bool = False
) -> Classifier:
  """Loads a file of weights, and their preprocessing (`weights.read_preprocessing`).

  Args:
    path: as in `weights.load`.
    model: the architecture, see `weights.complete_model`.
    ema: as in `weights.load`.
    calibrated: see `load`.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the architecture is unknown, or the weights do not fit it.
  """
  new_head = weights.needs_new_head(path, model.num_classes, ema)
  model = weights.complete_model(path, model, ema)
  config, network = resolve_model(Config(model=model, data=DataConfig(name="")))
  variables = weights.load(path, network, ema=ema, new_head=new_head)
  num_classes = config.model.num_classes
  names = () if new_head else weights.known_class_names(path, num_classes)
  labels = "class" if new_head else weights.read_labels(path)
  return Classifier(
    config.model.name,
    network,
    variables,
    weights.read_preprocessing(path, network),
    weights.all_class_names(names, num_classes),
    image_channels(variables),
    labels=labels,
    training={} if new_head else weights.read_training(path),
    **read_calibration(path, None, labels) if calibrated else {},
  )


def check_finite(outputs: np.ndarray, name: str) -> None:
  """Raises `FloatingPointError` if a network's outputs for an image are not finite."""
  if not np.isfinite(outputs).all():
    raise FloatingPointError(
      f"the network's outputs for {name} are not finite; check its weights, and the "
      "mean and std of the images"
    )
