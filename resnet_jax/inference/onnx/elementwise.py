"""Rules for the operations of JAX that combine tensors value by value."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resnet_jax.inference.onnx.graph import (
  Constant,
  Graph,
  Stored,
  UnsupportedError,
  Value,
  usual_order,
)


@dataclasses.dataclass(frozen=True)
class Call:
  """A call of an operation of JAX.

  Attributes:
    graph: the graph that gets the nodes.
    inputs: the inputs; at least one is `Stored`.
    params: the operation's parameters.
    outputs: have the shape and dtype of each output.
  """

  graph: Graph
  inputs: Sequence[Value]
  params: dict[str, Any]
  outputs: Sequence[Any]

  @property
  def stored(self) -> Stored:
    """The first input, which must not be a constant."""
    x = self.inputs[0]
    if isinstance(x, Constant):
      raise UnsupportedError("a constant as the first input")
    return x

  @property
  def output(self) -> Any:
    """Has the shape and dtype of the first output."""
    return self.outputs[0]


Rule = Callable[[Call], Value | list[Value]]


def combined(call: Call, inputs: Sequence[Value], op: str, *ops: str) -> Stored:
  """Adds a node that combines the inputs with broadcasting, and nodes after it."""
  graph, rank = call.graph, len(call.output.shape)
  orders = [x.order for x in inputs if isinstance(x, Stored) and len(x.shape) == rank]
  usual = usual_order(rank)
  order = usual if usual in orders or not orders else orders[0]
  sizes, names = [1] * rank, []
  for x in inputs:
    own = x.array.shape if isinstance(x, Constant) else x.sizes
    sizes = [max(pair) for pair in zip(sizes, own or sizes, strict=True)]
    names.append(graph.ordered(x, order if own else ()))
  for first, then in zip((op, *ops), ops, strict=False):
    names, op = [graph.node(first, names)], then
  return graph.add(op, names, call.output, order, sizes)


def _simple(*ops: str) -> Rule:
  return lambda call: combined(call, call.inputs, *ops)


def _like(call: Call, number: float) -> Constant:
  return Constant(np.array(number, call.output.dtype))


def _maximum(call: Call) -> Value:
  for x, other in (call.inputs, call.inputs[::-1]):
    if isinstance(other, Constant) and not other.array.any() and other.array.size == 1:
      return combined(call, [x], "Relu")
  return combined(call, call.inputs, "Max")


def _power(call: Call) -> Value:
  if call.params["y"] == 2:
    return combined(call, [call.stored, call.stored], "Mul")
  return combined(call, [call.stored, _like(call, call.params["y"])], "Pow")


def _select(call: Call) -> Value:
  condition, *cases = call.inputs
  if len(cases) != 2:
    raise UnsupportedError("a choice between more than two tensors")
  return combined(call, [condition, *cases[::-1]], "Where")


def _clamp(call: Call) -> Value:
  low, x, high = call.inputs
  return combined(call, [combined(call, [x, low], "Max"), high], "Min")


def _cast(call: Call) -> Value:
  from onnx.helper import np_dtype_to_tensor_dtype

  x, dtype = call.stored, call.output.dtype
  if x.dtype == dtype:
    return x
  name = call.graph.node("Cast", [x.name], to=np_dtype_to_tensor_dtype(dtype))
  return dataclasses.replace(x, name=name, dtype=np.dtype(dtype))


def _round(call: Call) -> Value:
  if int(call.params["rounding_method"]) != 1:  # Not to the nearest even number.
    raise UnsupportedError("rounding of halves away from zero")
  return combined(call, call.inputs, "Round")


_OPS = {
  **{"logistic": "Sigmoid", "exp": "Exp", "log": "Log", "tanh": "Tanh", "sqrt": "Sqrt"},
  **{"neg": "Neg", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil"},
  **{"erf": "Erf", "sin": "Sin", "cos": "Cos", "not": "Not", "and": "And", "or": "Or"},
  **{"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"},
  **{"min": "Min", "pow": "Pow", "eq": "Equal", "gt": "Greater", "lt": "Less"},
  **{"ge": "GreaterOrEqual", "le": "LessOrEqual"},
}
ELEMENTWISE: dict[str, Rule] = {
  **{name: _simple(op) for name, op in _OPS.items()},
  "rsqrt": _simple("Sqrt", "Reciprocal"),
  "ne": _simple("Equal", "Not"),
  "max": _maximum,
  "square": lambda call: combined(call, [call.stored, call.stored], "Mul"),
  "integer_pow": _power,
  "log1p": lambda call: combined(call, [call.stored, _like(call, 1)], "Add", "Log"),
  "expm1": lambda call: combined(
    call, [combined(call, [call.stored], "Exp"), _like(call, 1)], "Sub"
  ),
  "erfc": lambda call: combined(
    call, [_like(call, 1), combined(call, [call.stored], "Erf")], "Sub"
  ),
  "select_n": _select,
  "clamp": _clamp,
  "round": _round,
  "convert_element_type": _cast,
}
