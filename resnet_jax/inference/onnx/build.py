"""Writes a network as an ONNX model."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from resnet_jax import __version__
from resnet_jax.inference.exported_function import ExportedFunction
from resnet_jax.inference.onnx.fusing import fuse
from resnet_jax.inference.onnx.graph import BATCH, Graph, Node
from resnet_jax.inference.onnx.trace import trace
from resnet_jax.runtime.errors import UserError

OPSET = 17
_HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(jnp.bfloat16)}
_SMALLEST = 256  # Values in a kernel that is stored in 16 bits.
_MOST_BYTES = 2**31 - 2**20  # Of a file in the format of Protocol Buffers.


def build(exported: ExportedFunction, precision: str = "float32") -> Any:
  """Returns an ONNX model of a network.

  Its input "images" [B, H, W, C] has any batch size, and its output has the name
  `exported.answer`. Inside, images are [B, C, H, W].

  Args:
    exported: the network, such as `exported_function(load(path))`. Its function must
      not depend on B.
    precision: "float16" or "bfloat16" stores the kernels in this type. They become
      float32 before they are used, which a runtime does once, when it loads the file.
      Otherwise all is float32.

  Returns:
    An `onnx.ModelProto`, with the metadata in `metadata_props`.

  Raises:
    UserError: the network uses an operation that this package does not write, or the
      file would be too large.
  """
  from onnx import helper

  graph = Graph()
  found = trace(graph, exported.function, exported.variables, exported.image)
  last = graph.ordered(found, range(len(found.shape)))
  fuse(graph, last)
  if precision in _HALVES:
    _halve(graph, precision)
  _check_size(graph)
  nodes = [
    helper.make_node(
      node.op,
      node.inputs,
      [exported.answer if node.output == last else node.output],
      name=node.name,
      **node.attributes,
    )
    for node in graph.nodes
  ]
  images = (BATCH, *exported.image.shape)
  model = helper.make_model(
    helper.make_graph(
      nodes,
      exported.metadata["architecture"],
      [_describe("images", images, exported.image.dtype)],
      [_describe(exported.answer, found.shape, found.dtype)],
      [_tensor(name, array) for name, array in graph.constants.items()],
    ),
    opset_imports=[helper.make_opsetid("", OPSET)],
    ir_version=8,  # Of ONNX 1.12, the first with this opset.
    producer_name="flax-resnet",
    producer_version=__version__,
  )
  helper.set_model_props(model, exported.metadata)
  return model


def _halve(graph: Graph, precision: str) -> None:
  """Stores the kernels in 16 bits."""
  dtype, casts = _HALVES[precision], []
  for name, array in list(graph.constants.items()):
    if array.dtype != np.float32 or array.ndim < 2 or array.size < _SMALLEST:
      continue
    with np.errstate(over="ignore"):
      half = array.astype(dtype)
    if not np.isfinite(half.astype(np.float32)).all():
      raise UserError(
        f"{name} has values up to {np.abs(array).max():.3g}, too large for float16; "
        "use --precision bfloat16"
      )
    del graph.constants[name]
    stored = graph.new_name(f"{name}/{precision}")
    graph.constants[stored] = half
    casts.append(Node("Cast", stored, [stored], name, {"to": 1}))  # 1 is float32.
  graph.nodes[:0] = casts


def _tensor(name: str, array: np.ndarray) -> Any:
  """Returns an initialiser; `numpy_helper` of older versions lacks bfloat16."""
  from onnx import TensorProto, numpy_helper

  if array.dtype != jnp.bfloat16:
    return numpy_helper.from_array(array, name)
  return TensorProto(
    name=name,
    dims=array.shape,
    data_type=TensorProto.BFLOAT16,
    raw_data=array.tobytes(),
  )


def _describe(name: str, shape: Sequence[int], dtype: Any) -> Any:
  from onnx import helper

  sizes = ["batch" if n % BATCH == 0 else n for n in shape]
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
  return helper.make_tensor_value_info(name, kind, sizes)


def _check_size(graph: Graph) -> None:
  size = sum(array.nbytes for array in graph.constants.values())
  if size > _MOST_BYTES:
    raise UserError(
      f"the network has {size / 1e9:.1f} GB of weights, and an ONNX file holds at most "
      "2 GB; use --format stablehlo, or --precision float16"
    )
