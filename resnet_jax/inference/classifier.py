"""A trained network with all that using it needs.

Letters: B batch, S side of the images, C channels, K classes, F features.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_jax import kernels
from resnet_jax.config.preprocessing import Preprocessing, check_fits
from resnet_jax.config.schema import DataConfig
from resnet_jax.data.batches.preprocess import normalize, to_grey_levels
from resnet_jax.inference import engines
from resnet_jax.models.folding import fold_batch_norm, folded_model, pack_kernels
from resnet_jax.models.operations import softmax
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import AnyArray, Array, Float32, Num, UInt
from resnet_jax.runtime.errors import UserError


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
    engine: what computes the outputs, see `with_engine`. `apply` is always JAX's.
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
  engine: str = "jax"

  def __call__(
    self, images: UInt[AnyArray, "b h w c"]
  ) -> dict[str, Num[Array, "b ..."]]:
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
    if self.engine != "jax":
      outputs = self._run_engine(np.asarray(images))
      return {name: jnp.asarray(array) for name, array in outputs.items()}
    folded = self.folded
    found: dict[str, Array] = folded._forward(images)
    return found

  def with_engine(self, engine: str) -> "Classifier":
    """Returns the same classifier, whose outputs another engine computes.

    Calls, `predict` and `embed.extract` use the engine. Its outputs for the first batch
    of each shape are compared with JAX's.

    Args:
      engine: "jax", "onnxruntime" or "openvino", see `engines.py`.

    Raises:
      UserError: there is no such engine, or its library is not installed.
    """
    engines.check_engine(engine)
    return dataclasses.replace(self, engine=engine)

  def in_engine(self, names: tuple[str, ...] = ()) -> engines.Run:
    """Returns what computes these outputs, or all, in an engine that is not JAX."""

    def forward(model: nn.Module, variables: Variables, images: Array) -> Any:
      found = dataclasses.replace(self, model=model).apply(variables, images)
      return {name: found[name] for name in names or found}

    return engines.create_run(
      self.engine,
      self.model,
      self.variables,
      forward,
      dtype=self.dtype,
      unit=max(self.std) if self.labels == "numbers" else 0.0,
    )

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
    return functools.lru_cache(maxsize=2)(self.with_kernels(pack))

  def with_kernels(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function so that it uses the fastest kernels for this classifier."""
    return kernels.traced_with(kernels.resolve_for_inference(self.dtype), function)

  @functools.cached_property
  def _forward(self) -> Callable[..., Any]:
    """`__call__` in JAX, of a folded classifier."""
    apply = self.with_kernels(self.apply)
    jit = partial(compilation.jit, dtype=self.dtype)

    def packed(images: Array) -> Variables:
      return self.packed((*images.shape[:-1], self.channels))

    if compilation.are_constants(self.variables):

      def with_constants(images: Array) -> Any:
        with jax.ensure_compile_time_eval():
          variables = packed(images)
        return apply(variables, images)

      return jit(with_constants)
    compiled = jit(apply)
    return lambda images: compiled(packed(images), images)

  @functools.cached_property
  def _run_engine(self) -> engines.Run:
    return self.in_engine()

  @property
  def has_maps(self) -> bool:
    """Whether the network is a `ResNet`, with logits from its last feature map."""
    model = self.model
    return isinstance(model, ResNet) and type(model).__call__ is ResNet.__call__

  @property
  def map_names(self) -> tuple[str, ...]:
    """The names of the feature maps in the outputs; () for a custom network."""
    stages: Any = self.model.stage_sizes if self.has_maps else ()
    return tuple(f"c{i}" for i in range(2, 2 + len(stages)))

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
  ) -> dict[str, Num[Array, "b ..."]]:
    """Computes the same as `__call__`, as a pure function.

    It can be traced, exported and differentiated.
    """
    model, images = self.model, self.normalized(images)
    if not self.has_maps:  # A custom network, which returns logits only.
      own_logits: Any = model.apply(variables, images, train=False)
      return self._answers(own_logits)
    maps: Any = model.apply(variables, images, method="stages")
    # The same operations as in the network.
    pooled = maps[-1].astype(jnp.float32).mean(axis=(1, 2))
    logits: Any = model.apply(variables, pooled, method=lambda net, x: net.head(x))
    named = {f"c{i}": x for i, x in enumerate(maps, start=2)}
    return {**self._answers(logits), "pooled": pooled, **named}

  def answer_of(
    self, variables: Variables, images: Num[Array, "b h w c"]
  ) -> Float32[Array, "b ..."]:
    """Returns the output that an export computes, whose name is `answer`."""
    return self.apply(variables, images)[self.answer]

  def normalized(self, images: Num[Array, "b h w c"]) -> Float32[Array, "b h w _"]:
    """Returns images with the channels of the network, normalised; traced.

    Raises:
      UserError: as in `__call__`.
    """
    preprocessing = self.preprocessing
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
    return normalize(
      images, preprocessing.mean, preprocessing.std, preprocessing.channel_order
    )

  def _answers(self, logits: Float32[Array, "b k"]) -> dict[str, Float32[Array, "b k"]]:
    if self.labels == "numbers":
      mean, std = (jnp.array(x)[None] for x in (self.mean, self.std))
      return {"values": logits * std + mean}
    activation = jax.nn.sigmoid if self.labels == "classes" else softmax
    return {"probabilities": activation(logits / self.temperature)}


def check_finite(outputs: np.ndarray, name: str) -> None:
  """Raises `FloatingPointError` if a network's outputs for an image are not finite."""
  if not np.isfinite(outputs).all():
    raise FloatingPointError(
      f"the network's outputs for {name} are not finite; check its weights, and the "
      "mean and std of the images"
    )
