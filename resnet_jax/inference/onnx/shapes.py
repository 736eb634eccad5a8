"""Rules for the operations of JAX that move, select or sum up values."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.inference.onnx.elementwise import Call, Rule
from resnet_jax.inference.onnx.graph import (
  BATCH,
  Constant,
  Graph,
  Stored,
  UnsupportedError,
  Value,
  usual_order,
)


def _groups(
  old: Sequence[int], new: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
  """Returns which axes become which, in a reshape; leaves out axes of size 1."""
  olds = [axis for axis, size in enumerate(old) if size != 1]
  news = [axis for axis, size in enumerate(new) if size != 1]
  groups = []
  while olds:
    group = [olds.pop(0)], [news.pop(0)]
    while (left := _size(old, group[0])) != (right := _size(new, group[1])):
      group[left > right].append((news if left > right else olds).pop(0))
    groups.append(group)
  return groups


def _size(shape: Sequence[int], axes: Sequence[int]) -> int:
  size = 1
  for axis in axes:
    size *= shape[axis]
  return size


def _with_ones(flat: list[int], sizes: Sequence[int]) -> tuple[int, ...]:
  """Returns an order of axes with `flat`, the order of those whose size is not 1."""
  usual = usual_order(len(sizes))
  if [axis for axis in usual if sizes[axis] != 1] == flat:
    return usual
  order = list(flat)
  for axis in range(len(sizes)):
    if axis not in order:
      order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
  return tuple(order)


def reshaped(graph: Graph, x: Stored, shape: Sequence[int]) -> Stored:
  """Returns a tensor with the same values and another shape."""
  x, shape = graph.whole(x), tuple(shape)
  if x.shape == shape:
    return x
  if kept := _kept_axes(graph, x, shape):
    return kept
  groups = _groups(x.shape, shape)
  stored = [axis for axis in x.order if x.shape[axis] != 1]
  places = [[stored.index(axis) for axis in olds] for olds, _ in groups]
  if any(p != [*range(p[0], p[0] + len(p))] for p in places):
    order = tuple(range(len(x.shape)))
    x = dataclasses.replace(x, name=graph.ordered(x, order), order=order)
    places = [olds for olds, _ in groups]
  ranked = sorted(zip(places, groups, strict=True))
  order = _with_ones([axis for _, (_, news) in ranked for axis in news], shape)
  sizes = [shape[axis] for axis in order]
  name = x.name if sizes == x.stored_sizes else graph.reshape(x.name, sizes)
  return Stored(name, shape, order, x.dtype, shape)


def _kept_axes(graph: Graph, x: Stored, shape: tuple[int, ...]) -> Stored | None:
  """Returns a sum in the new shape if that only keeps the axes summed over."""
  if x.name not in graph.reduced:
    return None
  op, given, axes = graph.reduced[x.name]
  if shape != tuple(1 if i in axes else n for i, n in enumerate(given.shape)):
    return None
  return _reduced(graph, op, given, axes, shape, given.order)


def _reduced(
  graph: Graph,
  op: str,
  x: Stored,
  axes: Sequence[int],
  shape: Sequence[int],
  order: Sequence[int],
) -> Stored:
  places = sorted(x.place(axis) for axis in axes)
  inputs, settings = [x.name], dict[str, Any](keepdims=int(len(order) == len(x.order)))
  if op == "ReduceSum":
    inputs.append(graph.constant(np.array(places, np.int64)))
  else:
    settings["axes"] = places
  name = graph.node(op, inputs, **settings)
  graph.counts[name] = _size(x.shape, axes), len(x.shape)
  return Stored(name, tuple(shape), tuple(order), x.dtype, tuple(shape))


def _reduce(op: str) -> Rule:
  def rule(call: Call) -> Value:
    x, axes = call.graph.whole(call.stored), tuple(call.params["axes"])
    left = [axis for axis in range(len(x.shape)) if axis not in axes]
    order = [left.index(axis) for axis in x.order if axis in left]
    made = _reduced(call.graph, op, x, axes, call.output.shape, order)
    call.graph.reduced[made.name] = op, x, axes
    return made

  return rule


def _place_of(op: str) -> Rule:
  """Returns the rule of the place of the largest or the smallest value."""

  def rule(call: Call) -> Value:
    from onnx.helper import np_dtype_to_tensor_dtype

    x, (axis,) = call.graph.whole(call.stored), call.params["axes"]
    order = [other - (other > axis) for other in x.order if other != axis]
    name = call.graph.node(op, [x.name], axis=x.place(axis), keepdims=0)
    dtype, shape = np.dtype(call.output.dtype), tuple(call.output.shape)
    name = call.graph.node("Cast", [name], to=np_dtype_to_tensor_dtype(dtype))
    return Stored(name, shape, tuple(order), dtype, shape)

  return rule


def _broadcast(call: Call) -> Value:
  x, shape = call.stored, tuple(call.output.shape)
  axes = [int(axis) for axis in call.params["broadcast_dimensions"]]
  sizes = [1] * len(shape)
  for axis, new in enumerate(axes):
    sizes[new] = x.sizes[axis]
  if len(shape) > len(x.shape):
    if kept := _kept_axes(call.graph, x, tuple(sizes)):
      return dataclasses.replace(kept, shape=shape)
    flat = [axes[axis] for axis in x.order if x.sizes[axis] != 1]
    order = _with_ones(flat, sizes)
    name = call.graph.reshape(x.name, [sizes[axis] for axis in order])
  else:
    name, order = x.name, x.order
  return Stored(name, shape, order, x.dtype, tuple(sizes))


def _transpose(call: Call) -> Value:
  x, new = call.stored, list(call.params["permutation"])
  return Stored(
    x.name,
    tuple(call.output.shape),
    tuple(new.index(axis) for axis in x.order),
    x.dtype,
    tuple(x.sizes[axis] for axis in new),
  )


def _sliced(
  call: Call,
  x: Stored,
  slices: dict[int, tuple[int, int, int]],
  like: Any,
) -> Stored:
  """Slices logical axes: {axis: (start, end, step)}."""
  places = [x.place(axis) for axis in slices]
  starts, ends, steps = zip(*slices.values(), strict=True)
  arrays = (starts, ends, places, steps)
  names = [call.graph.constant(np.array(values, np.int64)) for values in arrays]
  return call.graph.add("Slice", [x.name, *names], like, x.order)


def _slice(call: Call) -> Value:
  x = call.graph.whole(call.stored)
  starts, ends = call.params["start_indices"], call.params["limit_indices"]
  steps = call.params["strides"] or [1] * len(starts)
  found = dict(enumerate(zip(starts, ends, steps, strict=True)))
  changed = {i: s for i, s in found.items() if s != (0, x.shape[i], 1)}
  return _sliced(call, x, changed, call.output) if changed else x


def _reverse(call: Call) -> Value:
  x = call.graph.whole(call.stored)
  back = dict.fromkeys(call.params["dimensions"], (-1, -(2**31), -1))
  return _sliced(call, x, back, call.output)


def _split(call: Call) -> list[Value]:
  x, start, parts = call.graph.whole(call.stored), 0, list[Value]()
  for size, like in zip(call.params["sizes"], call.outputs, strict=True):
    bounds = {call.params["axis"]: (start, start + int(size), 1)}
    parts.append(_sliced(call, x, bounds, like))
    start += int(size)
  return parts


def _pad(call: Call) -> Value:
  x, value = call.graph.whole(call.stored), call.inputs[1]
  config = [tuple(map(int, side)) for side in call.params["padding_config"]]
  is_plain = all(min(side) >= 0 and side[2] == 0 for side in config)
  if not is_plain or not isinstance(value, Constant):
    raise UnsupportedError("padding with negative sizes or between pixels")
  if not any(map(any, config)):
    return x
  return padded(
    call.graph, x, [(low, high) for low, high, _ in config], call.output, value
  )


def padded(
  graph: Graph,
  x: Stored,
  sides: Sequence[tuple[int, int]],
  like: Any,
  value: Constant | None,
) -> Stored:
  """Pads each logical axis by a number of values before and after.

  Args:
    graph: gets the node.
    x: the tensor.
    sides: (before, after) for each logical axis.
    like: has the shape and dtype of the result.
    value: the value outside; None mirrors the image.
  """
  pads = [sides[axis][i] for i in range(2) for axis in x.order]
  names = [x.name, graph.constant(np.array(pads, np.int64))]
  if value is None:
    return graph.add("Pad", names, like, x.order, mode="reflect")
  names.append(graph.constant(value.array))
  return graph.add("Pad", names, like, x.order, mode="constant")


def _concatenate(call: Call) -> Value:
  first = next(x for x in call.inputs if isinstance(x, Stored))
  names, axis = [], call.params["dimension"]
  for x in call.inputs:
    if isinstance(x, Stored):
      x = call.graph.whole(x)
    elif any(size % BATCH == 0 for size in call.output.shape):
      raise UnsupportedError("a constant joined to each image of the batch")
    names.append(call.graph.ordered(x, first.order))
  place = first.place(axis)
  return call.graph.add("Concat", names, call.output, first.order, axis=place)


def _gather(call: Call) -> Value:
  """Takes constant positions along one axis."""
  x, indices = call.graph.whole(call.stored), call.inputs[1]
  numbers, sizes = call.params["dimension_numbers"], call.params["slice_sizes"]
  if not isinstance(indices, Constant) or numbers.operand_batching_dims:
    raise UnsupportedError("indices that depend on the images")
  axes = numbers.start_index_map
  taken = indices.array[..., 0].astype(np.int64) if len(axes) == 1 else None
  whole = [n if i in axes else x.shape[i] for i, n in enumerate(sizes)]
  if taken is None or numbers.collapsed_slice_dims != axes or [*sizes] != whole:
    raise UnsupportedError("indices along several axes")
  (axis,), rank = axes, len(call.output.shape)
  new = [i for i in range(rank) if i not in numbers.offset_dims]
  if taken.ndim > 1 or new != [axis] * taken.ndim:
    raise UnsupportedError("indices with several axes")
  if not ((taken >= 0) & (taken < x.shape[axis])).all():
    raise UnsupportedError("indices outside of the tensor")
  order = x.order
  if taken.ndim == 0:
    order = tuple(i - (i > axis) for i in x.order if i != axis)
  names = [x.name, call.graph.constant(taken)]
  return call.graph.add("Gather", names, call.output, order, axis=x.place(axis))


def _reshape(call: Call) -> Value:
  if call.params.get("dimensions") is not None:
    raise UnsupportedError("a reshape in another order of the axes")
  return reshaped(call.graph, call.stored, call.output.shape)


SHAPES: dict[str, Rule] = {
  "reshape": _reshape,
  "squeeze": lambda call: reshaped(call.graph, call.stored, call.output.shape),
  "broadcast_in_dim": _broadcast,
  "transpose": _transpose,
  "slice": _slice,
  "rev": _reverse,
  "split": _split,
  "pad": _pad,
  "concatenate": _concatenate,
  "gather": _gather,
  "reduce_sum": _reduce("ReduceSum"),
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_prod": _reduce("ReduceProd"),
  "argmax": _place_of("ArgMax"),
  "argmin": _place_of("ArgMin"),
}
