"""Rules for functions and modules that are written as a few operations of ONNX.

Of JAX's operations, they need many. `models/operations.py` marks the functions, and
`marking_modules` the modules.

Letters: B batch, H height, W width, C channels.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_jax.inference.onnx.elementwise import Call, combined
from resnet_jax.inference.onnx.graph import Constant, Stored, Value
from resnet_jax.inference.onnx.shapes import padded
from resnet_jax.models.layers import EfficientChannelAttention
from resnet_jax.models.operations import mark, softmax
from resnet_jax.models.pooling import average_pool, blur_pool, max_pool_3x3

_NCHW = 0, 3, 1, 2


def group_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float
) -> jax.Array:
  """Returns an array like `x`; only its shape counts."""
  return x


def channel_attention(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns an array like `x`; only its shape counts."""
  return x


def _mark_module(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
  module = context.module
  if context.method_name == "__call__" and len(args) == 1 and not kwargs:
    (x,) = args
    arrays: Any
    if type(module) is nn.GroupNorm and _is_plain(module) and x.ndim == 4:
      groups = module.num_groups or x.shape[-1] // module.group_size
      arrays = (module.get_variable("params", name) for name in ("scale", "bias"))
      y = mark(group_norm, x, *arrays, groups=groups, epsilon=module.epsilon)
      return y.astype(module.dtype or x.dtype)
    if type(module) is EfficientChannelAttention:
      return mark(channel_attention, x, module.get_variable("params", "kernel"))
  return call(*args, **kwargs)


def _is_plain(norm: nn.GroupNorm) -> bool:
  names = norm.axis_name, norm.axis_index_groups, norm.reduction_axes
  return norm.use_scale and norm.use_bias and not any(names)


def marking_modules() -> contextlib.AbstractContextManager[None]:
  """Makes the trace of some modules one `OPERATION` each."""
  return nn.intercept_methods(_mark_module)


def _images(call: Call) -> Stored:
  """Returns the input, stored as (B, C, H, W)."""
  x = call.graph.whole(call.stored)
  name = call.graph.ordered(x, _NCHW)
  return Stored(name, x.shape, _NCHW, x.dtype, x.shape)


def _max_pool(call: Call, stride: int, border: float) -> Value:
  x, pads = _images(call), 1
  if border != -jnp.inf:
    batch, height, width, channels = x.shape
    shape = jax.ShapeDtypeStruct((batch, height + 2, width + 2, channels), x.dtype)
    value = Constant(np.array(border, x.dtype))
    sides = ((0, 0), (1, 1), (1, 1), (0, 0))
    x, pads = padded(call.graph, x, sides, shape, value), 0
  return call.graph.add(
    "MaxPool",
    [x.name],
    call.output,
    _NCHW,
    kernel_shape=[3, 3],
    strides=[stride] * 2,
    pads=[pads] * 4,
  )


def _average_pool(call: Call, stride: int, distance: int) -> Value | None:
  if stride == 1:
    return None
  x = _images(call)
  return call.graph.add(
    "AveragePool",
    [x.name],
    call.output,
    _NCHW,
    kernel_shape=[stride] * 2,
    strides=[stride] * 2,
    pads=[0, 0, *(-size % stride for size in x.shape[1:3])],
    count_include_pad=0,
  )


def _blur_pool(call: Call, stride: int, distance: int) -> Value | None:
  """A convolution of each channel by itself; an axis of one pixel stays as it is."""
  x = _images(call)
  batch, *sides, channels = x.shape
  if distance != 1:
    return None
  pads = [int(side > 1) for side in sides]
  rows, columns = (np.array([1, 2, 1] if pad else [4], x.dtype) for pad in pads)
  if any(pads):
    sizes = (side + 2 * pad for side, pad in zip(sides, pads, strict=True))
    shape = jax.ShapeDtypeStruct((batch, *sizes, channels), x.dtype)
    around = ((0, 0), *((pad, pad) for pad in pads), (0, 0))
    x = padded(call.graph, x, around, shape, None)
  kernel = np.tile(np.outer(rows, columns) / np.array(16, x.dtype), (channels, 1, 1, 1))
  return call.graph.add(
    "Conv",
    [x.name, call.graph.constant(kernel.astype(x.dtype), "blur")],
    call.output,
    _NCHW,
    kernel_shape=kernel.shape[2:],
    strides=[stride] * 2,
    group=channels,
  )


def _softmax(call: Call, axis: Any, where: Any = None, **_: Any) -> Value | None:
  x = call.graph.whole(call.stored)
  if not isinstance(axis, int) or where is not None:
    return None
  place = x.place(axis % len(x.shape))
  return call.graph.add("Softmax", [x.name], call.output, x.order, axis=place)


def _group_norm(call: Call, groups: int, epsilon: float) -> Value:
  """Instance norm of each group as one channel, then the scale and bias."""
  graph, x = call.graph, _images(call)
  scale, bias = call.inputs[1:]
  split = graph.node("Reshape", [x.name, graph.constant(np.array([0, groups, -1]))])
  ones, zeros = (graph.constant(np.full(groups, n, x.dtype)) for n in (1, 0))
  names = [split, ones, zeros]
  normal = graph.node("InstanceNormalization", names, epsilon=epsilon)
  name = graph.reshape(normal, x.stored_sizes)
  y = Stored(name, x.shape, _NCHW, x.dtype, x.shape)
  return combined(
    call, [combined(call, [y, _per_channel(scale)], "Mul"), _per_channel(bias)], "Add"
  )


def _per_channel(values: Any) -> Constant:
  return Constant(values.array[None, None, None], values.label)


def _channel_attention(call: Call) -> Value:
  """A convolution along the channels of the means."""
  graph, x = call.graph, _images(call)
  kernel: Any = call.inputs[1]
  size, channels = len(kernel.array), x.shape[-1]
  means = graph.node("GlobalAveragePool", [x.name])
  line = graph.reshape(means, [x.shape[0], 1, channels])
  names = [line, graph.constant(kernel.array.reshape(1, 1, size), kernel.label)]
  mixed = graph.node("Conv", names, kernel_shape=[size], pads=[size // 2] * 2)
  scale = graph.node("Sigmoid", [graph.reshape(mixed, [x.shape[0], channels, 1, 1])])
  return graph.add("Mul", [x.name, scale], call.output, _NCHW)


# By the function that is marked. A rule that returns None leaves the function's own
# operations to be written.
MARKED: dict[Any, Callable[..., Value | None]] = {
  max_pool_3x3: _max_pool,
  average_pool: _average_pool,
  blur_pool: _blur_pool,
  softmax: _softmax,
  group_norm: _group_norm,
  channel_attention: _channel_attention,
}
