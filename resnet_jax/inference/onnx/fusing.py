"""Makes a graph shorter without changing what it computes.

Scales and biases per channel go into the convolution or product before them, and a sum
that is divided by the number of its values becomes a mean.
"""

from collections import Counter

import numpy as np

from resnet_jax.inference.onnx.graph import Graph, Node


def fuse(graph: Graph, output: str) -> None:
  """Changes the graph's nodes, and removes those that `output` does not need."""
  _Fusing(graph, output).run()


class _Fusing:
  def __init__(self, graph: Graph, output: str) -> None:
    self.graph, self.output = graph, output
    self.made: dict[str, Node] = {}

  def run(self) -> None:
    self._remove_unused()
    self.uses = Counter(name for node in self.graph.nodes for name in node.inputs)
    self.uses[self.output] += 1
    kept = []
    for node in self.graph.nodes:
      if before := self._mean(node) or self._folded(node):
        before.output = node.output
        self.made[node.output] = before
      else:
        self._normalize(node)
        kept.append(node)
        self.made[node.output] = node
    self.graph.nodes = kept
    self._remove_unused()

  def _remove_unused(self) -> None:
    needed, kept = {self.output}, []
    for node in reversed(self.graph.nodes):
      if node.output in needed:
        needed.update(node.inputs)
        kept.append(node)
    self.graph.nodes = kept[::-1]
    constants = self.graph.constants
    self.graph.constants = {n: constants[n] for n in constants if n in needed}

  def _operands(self, node: Node) -> tuple[Node, np.ndarray, str] | None:
    """Returns the node before, the constant and its name, if one of each is combined.

    No other node may need the output of the node before.
    """
    if len(node.inputs) != 2:
      return None
    for first, second in (node.inputs, node.inputs[::-1]):
      before, constant = self.made.get(first), self.graph.constants.get(second)
      is_swapped = first != node.inputs[0]
      if is_swapped and node.op in ("Sub", "Div"):
        continue
      if before and constant is not None and self.uses[first] == 1:
        return before, constant, second
    return None

  def _folded(self, node: Node) -> Node | None:
    """Returns the convolution or product that now computes this node too."""
    if node.op not in ("Add", "Sub", "Mul", "Div") or not (
      operands := self._operands(node)
    ):
      return None
    before, constant, name = operands
    weights = self.graph.constants.get((before.inputs + [""] * 2)[1])
    if before.op not in ("Conv", "Gemm") or weights is None:
      return None
    channel = 0 if before.op == "Conv" else 1
    channels = weights.shape[channel]
    pixels = [1] * (weights.ndim - 2)
    if constant.size != 1 and constant.shape[-1 - len(pixels) :] != (channels, *pixels):
      return None
    if constant.size not in (1, channels):
      return None
    values = np.broadcast_to(constant.reshape(-1), channels)
    if node.op in ("Mul", "Div"):
      if (values == 1).all():
        return before
      self._scale(before, weights, channel, values if node.op == "Mul" else 1 / values)
    else:
      self._shift(before, values if node.op == "Add" else -values, name)
    return before

  def _scale(
    self, node: Node, weights: np.ndarray, channel: int, values: np.ndarray
  ) -> None:
    shape = [1] * weights.ndim
    shape[channel] = -1
    self._change(node, 1, weights * values.reshape(shape), node.inputs[1])
    if node.inputs[2:]:
      bias = self.graph.constants[node.inputs[2]]
      self._change(node, 2, bias * values, node.inputs[2])

  def _shift(self, node: Node, values: np.ndarray, name: str) -> None:
    if node.inputs[2:]:
      values, name = self.graph.constants[node.inputs[2]] + values, node.inputs[2]
    self._change(node, 2, values, name)

  def _change(self, node: Node, place: int, array: np.ndarray, name: str) -> None:
    """Makes `array` an input of the node; it replaces a constant that only it needs."""
    if self.uses[name] > 1:
      name = self.graph.new_name(name)
    self.graph.constants[name] = array
    node.inputs[place:] = [name, *node.inputs[place + 1 :]]

  def _normalize(self, node: Node) -> None:
    """Makes a sum with a product, both per channel, one batch norm."""
    if node.op != "Add" or not (operands := self._operands(node)):
      return
    before, bias, bias_name = operands
    constants = self.graph.constants
    scales = [constants[name] for name in before.inputs if name in constants]
    if before.op != "Mul" or len(scales) != 1:
      return
    (scale,) = scales
    if scale.shape != bias.shape or scale.shape != (1, scale.size, 1, 1):
      return
    dtype = bias.dtype
    arrays = scale, bias, np.zeros(bias.size, dtype), np.ones(bias.size, dtype)
    x = next(name for name in before.inputs if name not in constants)
    node.op, node.attributes = "BatchNormalization", {"epsilon": 0.0}
    node.inputs = [x, *(self.graph.constant(a.ravel(), bias_name) for a in arrays)]

  def _mean(self, node: Node) -> Node | None:
    """Makes the division of a sum a mean; returns a node that is now this mean."""
    if node.op != "Div" or not (operands := self._operands(node)):
      return None
    before, number, _ = operands
    number_of_values, rank = self.graph.counts.get(before.output, (0, 0))
    if before.op != "ReduceSum" or number.size != 1 or number != number_of_values:
      return None
    x, axes = before.inputs
    places = self.graph.constants[axes].tolist()
    keeps = before.attributes["keepdims"]
    if rank == 4 and places == [2, 3]:
      before.op, before.inputs, before.attributes = "GlobalAveragePool", [x], {}
      if keeps:
        return before
      node.op, node.inputs = "Flatten", [before.output]
    else:
      node.op, node.inputs = "ReduceMean", [x]
      node.attributes = {"axes": places, "keepdims": keeps}
    return None
