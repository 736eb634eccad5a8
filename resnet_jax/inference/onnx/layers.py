"""Rules for the operations of JAX that layers consist of: products and pools."""

import dataclasses
import string
from typing import Any

import numpy as np

from resnet_jax.inference.onnx.elementwise import Call, Rule, combined
from resnet_jax.inference.onnx.graph import Constant, Stored, UnsupportedError, Value


def _conv(call: Call) -> Value:
  graph, params = call.graph, call.params
  x, kernel = call.inputs
  numbers = params["dimension_numbers"]
  if params["batch_group_count"] != 1 or {*params["lhs_dilation"]} - {1}:
    raise UnsupportedError("a transposed convolution")
  return graph.add(
    "Conv",
    [_whole(call, x, numbers.lhs_spec), graph.ordered(kernel, numbers.rhs_spec)],
    call.output,
    numbers.out_spec,
    kernel_shape=[_shape(kernel)[axis] for axis in numbers.rhs_spec[2:]],
    strides=list(params["window_strides"]),
    pads=_pads(params["padding"]),
    dilations=list(params["rhs_dilation"]),
    group=params["feature_group_count"],
  )


def _shape(x: Value) -> tuple[int, ...]:
  return x.array.shape if isinstance(x, Constant) else x.shape


def _whole(call: Call, x: Value, order: tuple[int, ...]) -> str:
  if isinstance(x, Stored):
    x = call.graph.whole(x)
  return call.graph.ordered(x, order)


def _pads(padding: Any) -> list[int]:
  pads = [int(side[i]) for i in range(2) for side in padding]
  if min(pads, default=0) < 0:
    raise UnsupportedError("negative padding")
  return pads


def _dot(call: Call) -> Value:
  (left, right), batch = call.params["dimension_numbers"]
  a, b = call.inputs
  if len(left) == 1 and not batch[0]:
    if isinstance(b, Constant) and b.array.ndim == 2 and isinstance(a, Stored):
      return _dense(call, a, left[0], b, right[0], is_first=True)
    if isinstance(a, Constant) and a.array.ndim == 2 and isinstance(b, Stored):
      return _dense(call, b, right[0], a, left[0], is_first=False)
  return _einsum(call)


def _dense(
  call: Call, x: Stored, axis: int, matrix: Constant, inner: int, is_first: bool
) -> Value:
  """Multiplies by a constant matrix along one axis.

  Args:
    call: the product.
    x: the tensor.
    axis: its logical axis.
    matrix: [K, N] or [N, K].
    inner: the axis of the matrix that is multiplied.
    is_first: whether `x` is the first factor. The new axis is then the last one, else
      the first.
  """
  graph, x, rank = call.graph, call.graph.whole(x), len(x.shape)
  place = x.place(axis)
  rest = [i for i in range(rank) if i != axis]
  new, first = (rank - 1, 0) if is_first else (0, 1)
  outer = 1 - inner

  def order_of(stored: tuple[int, ...]) -> list[int]:
    return [new if i == axis else first + rest.index(i) for i in stored]

  if rank == 4 and place == 1:  # Of channels: a convolution of 1x1 pixels.
    kernel = dataclasses.replace(matrix, array=matrix.array[..., None, None])
    names = [x.name, graph.ordered(kernel, (outer, inner, 2, 3))]
    return graph.add("Conv", names, call.output, order_of(x.order), kernel_shape=[1, 1])
  if rank > 2 and place == rank - 2:
    names = [graph.ordered(matrix, (outer, inner)), x.name]
    return graph.add("MatMul", names, call.output, order_of(x.order))
  order = (*(i for i in x.order if i != axis), axis)
  names = [graph.ordered(x, order), graph.ordered(matrix, (inner, outer))]
  op = "Gemm" if rank == 2 else "MatMul"
  return graph.add(op, names, call.output, order_of(order))


def _einsum(call: Call) -> Value:
  (left, right), (left_batch, right_batch) = call.params["dimension_numbers"]
  a, b = call.inputs
  rank = len(_shape(a))
  first, second = string.ascii_lowercase[:rank], list(string.ascii_uppercase)
  for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
    second[j] = first[i]
  second = second[: len(_shape(b))]
  made = [first[i] for i in left_batch]
  made += [x for i, x in enumerate(first) if i not in (*left, *left_batch)]
  made += [x for j, x in enumerate(second) if j not in (*right, *right_batch)]
  names, terms = [], []
  for x, letters in ((a, first), (b, second)):
    order = x.order if isinstance(x, Stored) else range(len(letters))
    names.append(_whole(call, x, tuple(order)))
    terms.append("".join(letters[i] for i in order))
  equation = f"{terms[0]},{terms[1]}->{''.join(made)}"
  return call.graph.add(
    "Einsum", names, call.output, range(len(made)), equation=equation
  )


def _pool(op: str) -> Rule:
  def rule(call: Call) -> Value:
    x, params = call.graph.whole(call.stored), call.params
    rank = len(x.shape)
    order = (0, rank - 1, *range(1, rank - 1))  # Channels are the last logical axis.
    keys = "window_dimensions", "window_strides", "window_dilation", "padding"
    window, strides, dilations, padding = (
      [params[key][axis] for axis in order] for key in keys
    )
    outside = [*window[:2], *strides[:2], *dilations[:2]]
    if {*outside, *params["base_dilation"]} != {1} or any(map(any, padding[:2])):
      raise UnsupportedError("a pool over images or channels")
    if op == "MaxPool":
      more: dict[str, Any] = {"dilations": dilations[2:]}
    elif {*dilations} == {1}:
      more = {"count_include_pad": 1}
    else:
      raise UnsupportedError("an average of pixels that are not neighbours")
    return call.graph.add(
      op,
      [call.graph.ordered(x, order)],
      call.output,
      order,
      kernel_shape=window[2:],
      strides=strides[2:],
      pads=_pads(padding[2:]),
      **more,
    )

  return rule


def _sum_pool(call: Call) -> Value:
  average: Any = _pool("AveragePool")(call)
  number = np.prod(call.params["window_dimensions"])
  return combined(call, [average, Constant(np.array(number, average.dtype))], "Mul")


LAYERS: dict[str, Rule] = {
  "conv_general_dilated": _conv,
  "dot_general": _dot,
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _sum_pool,
}
