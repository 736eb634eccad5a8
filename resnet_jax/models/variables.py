"""The variables of a network: parameters and batch-norm statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.models.scan_layout import to_named
from resnet_jax.runtime.errors import UserError

# What `model.apply` takes: {"params": ..., "batch_stats": ...}.
Variables = dict[str, Any]
Change = Callable[[Variables], Variables]


def abstract_variables(
  model: nn.Module, image_shape: tuple[int, int, int], sharding: jax.sharding.Sharding
) -> Variables:
  """Returns the shapes and dtypes of a network's variables, in the named layout.

  It computes no values.

  Args:
    model: called as `model.init(key, images)`.
    image_shape: (H, W, C).
    sharding: sharding of every leaf.
  """
  if hasattr(model, "scan"):
    model = model.clone(scan=True)  # The quickest to trace.

  def init(images: jax.Array) -> Variables:
    named: Variables = to_named(model.init(jax.random.key(0), images))
    return {"batch_stats": {}} | named

  shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  abstract: Variables = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
  )
  return abstract


def image_channels(variables: Variables) -> int:
  """Returns the number of image channels that the variables need.

  They are those of a `ResNet`, or of a network with one as "backbone".
  """
  if "backbone" in (params := variables["params"]):
    variables = {"params": params["backbone"]}
  return int(_first_kernel(variables)[1].shape[2])


def with_channels(variables: Variables, channels: int) -> Variables:
  """Adapts the first kernel of a `ResNet` to images of another number of channels.

  As in timm (`adapt_input_conv`), a kernel for one channel is the sum over the three
  colours. For other numbers, the colours are repeated and multiplied by 3 / `channels`.

  Args:
    variables: {"params": ..., "batch_stats": ...} of a network for 3 channels.
    channels: the new number of channels, > 0.

  Returns:
    The adapted variables; the given ones if they already have this number of channels.

  Raises:
    UserError: the variables are neither for 3 nor for `channels` channels.
  """
  _, kernel = _first_kernel(variables)
  given = kernel.shape[2]
  if given == channels:
    return variables
  if given != 3:
    raise UserError(
      f"a network for images of {given} channels cannot be adapted to {channels}; only "
      "one for 3 channels can"
    )
  if channels == 1:
    kernel = kernel.sum(axis=2, keepdims=True)
  else:
    repeated = jnp.tile(kernel, (1, 1, -(-channels // 3), 1))
    kernel = repeated[:, :, :channels] * (3 / channels)
  return _with_first_kernel(variables, kernel)


def with_reversed_channels(variables: Variables) -> Variables:
  """Adapts the first kernel of a `ResNet` to images in BGR order, or back to RGB."""
  return _with_first_kernel(variables, _first_kernel(variables)[1][:, :, ::-1])


def _first_kernel(variables: Variables) -> tuple[str, Any]:
  """Returns the name of a stem's first convolution, and its kernel."""
  stem = variables["params"]["stem"]
  name = min(name for name in stem if name.startswith("conv"))
  return name, stem[name]["kernel"]


def _with_first_kernel(variables: Variables, kernel: Any) -> Variables:
  name, _ = _first_kernel(variables)
  params = variables["params"]
  stem = params["stem"] | {name: params["stem"][name] | {"kernel": kernel}}
  return variables | {"params": params | {"stem": stem}}
