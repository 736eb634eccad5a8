"""The form of a network in which exporters and other engines take it.

Letters: B batch, H height, W width, C channels, K classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.models.folding import fold_batch_norm, folded_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables
from resnet_jax.runtime.arrays import Array


@dataclasses.dataclass(frozen=True)
class ExportedFunction:
  """What an export writes, or another engine gets.

  Attributes:
    function: (variables, images [B, H, W, C]) -> answers [B, K] float32, or a dict of
      several outputs.
    variables: those of the network with folded batch norm, on the CPU.
    image: [H, W, C] and the dtype of an image: uint8, or uint16 if
      `Preprocessing.max_value` is set.
    outputs: names of the outputs, sorted: "probabilities", or "values" if the network
      predicts numbers.
    metadata: what a file stores beside the graph. "class_names", "preprocessing" and
      "recipe" are JSON. "resize", "crop" and "interpolation" say what the caller must
      do, if `function` does not do it. "max_value" is what 65535 stands for.
  """

  function: Callable[[Variables, Array], Any]
  variables: Variables
  image: jax.ShapeDtypeStruct
  outputs: tuple[str, ...]
  metadata: dict[str, str]


def portable(model: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
  """Returns a network with the same results, and its variables on the CPU.

  Batch norm is folded. A `ResNet` computes in float32, and its blocks are written one
  after the other, without `scan` and `remat`.

  Args:
    model: the network.
    variables: {"params": ..., "batch_stats": ...} in the named layout.
  """
  if isinstance(model, ResNet):
    model = model.clone(dtype=jnp.float32, scan=False, remat=False)
  # The CPU computes in full float32; accelerators multiply with fewer bits.
  cpu = jax.local_devices(backend="cpu")[0]
  with jax.default_device(cpu):
    fold = jax.jit(lambda variables: fold_batch_norm(model, variables)[1])
    return folded_model(model), fold(jax.device_put(variables, cpu))
