"""What a network is made of: layers, sizes, parameters, multiply-adds."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.module import InterceptorContext

from resnet_jax.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer that has parameters or statistics.

  Attributes:
    name: its path, such as "stage1/block1/conv1".
    kind: name of its class.
    output_shape: for one image; (H, W, C), or (C,) for the head.
    params: number of parameters.
    multiply_adds: those of convolutions and matrix products; norms and biases count 0.
    output_bytes: size of the output in bytes.
  """

  name: str
  kind: str
  output_shape: tuple[int, ...]
  params: int
  multiply_adds: int
  output_bytes: int


def list_layers(model: ResNet, image_shape: tuple[int, int, int]) -> list[Layer]:
  """Returns the layers in the order in which they run; nothing is computed.

  Args:
    model: any network; `scan` and `remat` make no difference.
    image_shape: (H, W, C).
  """
  model = model.clone(scan=False, remat=False)
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  layers: dict[str, Layer] = {}

  def record(
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: InterceptorContext,
  ) -> Any:
    output = run(*args, **kwargs)
    path = context.module.path
    params = _own_arrays(variables.get("params", {}), path)
    if context.method_name == "__call__" and (
      params or _own_arrays(variables.get("batch_stats", {}), path)
    ):
      # Each weight of a kernel is used once per pixel of the output.
      pixels = math.prod(output.shape[:-1])
      name = "/".join(path)
      layers[name] = Layer(
        name=name,
        kind=type(context.module).__name__,
        output_shape=output.shape[1:],
        params=sum(array.size for array in params.values()),
        multiply_adds=params["kernel"].size * pixels if "kernel" in params else 0,
        output_bytes=output.size * output.dtype.itemsize,
      )
    return output

  with nn.intercept_methods(record):
    jax.eval_shape(model.apply, variables, images)
  return list(layers.values())


def _own_arrays(
  tree: Mapping[str, Any], path: tuple[str, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the arrays directly under a path, without those of submodules."""
  for key in path:
    tree = tree.get(key, {})
  return {key: value for key, value in tree.items() if not isinstance(value, dict)}
