"""Traces a function and writes it into a graph, operation by operation."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from resnet_jax.inference.onnx.elementwise import ELEMENTWISE, Call, Rule
from resnet_jax.inference.onnx.graph import (
  BATCH,
  Constant,
  Graph,
  Stored,
  UnsupportedError,
  Value,
  usual_order,
)
from resnet_jax.inference.onnx.layers import LAYERS
from resnet_jax.inference.onnx.marked import MARKED, marking_modules
from resnet_jax.inference.onnx.shapes import SHAPES
from resnet_jax.models.operations import OPERATION, marked_operations, unmarked
from resnet_jax.runtime.errors import UserError

_RULES: dict[str, Rule] = ELEMENTWISE | SHAPES | LAYERS
_UNCHANGED = {"name", "copy", "copy_p", "stop_gradient", "optimization_barrier"}
_CALLS = {"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call"}
_CALLS |= {"core_call", "checkpoint", "remat", "remat2", "custom_vjp_call_jaxpr"}


def trace(
  graph: Graph,
  function: Callable[[Any, Any], Any],
  variables: Any,
  image: jax.ShapeDtypeStruct,
) -> Stored:
  """Adds a function's operations to the graph, and returns its result."""
  images = jax.ShapeDtypeStruct((BATCH, *image.shape), image.dtype)
  paths, _ = jax.tree_util.tree_flatten_with_path(variables)
  with marked_operations(), marking_modules():
    traced = jax.make_jaxpr(function)(variables, images)
  inputs: list[Value] = [
    Constant(np.asarray(leaf), "/".join(str(getattr(k, "key", k)) for k in path[1:]))
    for path, leaf in paths
  ]
  rank, shape = len(images.shape), images.shape
  given = Stored(
    graph.new_name("images"), shape, (*range(rank),), np.dtype(image.dtype), shape
  )
  # uint8 values are moved faster than float values.
  order = usual_order(rank)
  name = graph.ordered(given, order)
  inputs.append(dataclasses.replace(given, name=name, order=order))
  (found,) = _walk(graph, traced, inputs)
  if isinstance(found, Constant):
    raise UserError("the output of the network does not depend on the images")
  return graph.whole(found)


def _walk(
  graph: Graph, closed: Any, inputs: Sequence[Value], scope: str = ""
) -> list[Value]:
  """Adds the operations of a traced function; returns its outputs."""
  jaxpr = getattr(closed, "jaxpr", closed)
  consts = closed.consts if isinstance(closed, ClosedJaxpr) else ()
  known = [Constant(np.asarray(const)) for const in consts]
  values: dict[Any, Value] = dict(zip(jaxpr.constvars, known, strict=True))
  values |= dict(zip(jaxpr.invars, inputs, strict=True))

  def value_of(name: Any) -> Value:
    if isinstance(name, Literal):
      aval: Any = name.aval
      return Constant(np.asarray(name.val, aval.dtype))
    return values[name]

  for eqn in jaxpr.eqns:
    graph.scope = _joined(scope, str(eqn.source_info.name_stack))
    made = _outputs(graph, eqn, [value_of(name) for name in eqn.invars])
    values |= dict(zip(eqn.outvars, made, strict=True))
  return [value_of(name) for name in jaxpr.outvars]


def _joined(*paths: str) -> str:
  """Returns the names of the modules in paths such as "Net.stages/stem/stem.last"."""
  names: list[str] = []
  for part in "/".join(path for path in paths if path).split("/"):
    name = part.partition(".")[0]  # Without the method.
    if name not in names[-1:]:
      names.append(name)
  return "/".join(names)


def _outputs(graph: Graph, eqn: Any, inputs: list[Value]) -> Sequence[Value]:
  name, params = eqn.primitive.name, eqn.params
  if name in _CALLS:
    inner = next(params[key] for key in ("jaxpr", "call_jaxpr") if key in params)
    return _walk(graph, inner, inputs, graph.scope)
  if name in _UNCHANGED:
    return inputs
  call = Call(graph, inputs, params, [variable.aval for variable in eqn.outvars])
  try:
    if eqn.primitive is OPERATION:
      return _marked(call)
    if all(isinstance(x, Constant) for x in inputs):
      return _computed(eqn, inputs)
    if name not in _RULES:
      raise UnsupportedError(f"the operation {name!r}")
    found = _RULES[name](call)
  except UnsupportedError as error:
    raise UserError(
      f"the ONNX writer does not know {error} of JAX, which "
      f"{graph.scope or 'the network'} uses; use --format stablehlo"
    ) from error
  return found if isinstance(found, list) else [found]


def _marked(call: Call) -> Sequence[Value]:
  function, settings = call.params["function"], call.params["settings"]
  if (found := MARKED[function](call, **settings)) is not None:
    return [found]
  return _walk(
    call.graph,
    unmarked(function, [call.stored], settings),
    call.inputs,
    call.graph.scope,
  )


def _computed(eqn: Any, inputs: Sequence[Any]) -> Sequence[Value]:
  """Computes an operation of constants now, for a batch of 1."""

  def of_one_image(leaf: Any) -> Any:
    if type(leaf) is int and leaf and leaf % BATCH == 0:
      return leaf // BATCH
    return leaf

  params = jax.tree.map(of_one_image, eqn.params)
  found = eqn.primitive.bind(*(x.array for x in inputs), **params)
  label = next((x.label for x in inputs if x.label), "")
  outputs = found if eqn.primitive.multiple_results else [found]
  return [Constant(np.asarray(array), label) for array in outputs]
