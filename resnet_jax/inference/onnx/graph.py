"""An ONNX graph under construction.

JAX's axes are logical axes, such as (B, H, W, C). The file may store them in another
order. A `Stored` tensor knows its order, so that transposes are written only where an
operation needs another one. Convolutions store images as (B, C, H, W).

All sizes are numbers: the batch has `BATCH` images, and a size that this number
divides becomes free in the file.

Letters: B batch, H height, W width, C channels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.runtime.errors import UserError

# A prime number that is no other size in a network.
BATCH = 65521


class UnsupportedError(UserError):
  """The writer does not know an operation, or not with its settings."""


@dataclasses.dataclass
class Node:
  """An operation of the file: the ONNX operation, its name, and so on."""

  op: str
  name: str
  inputs: list[str]
  output: str
  attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Constant:
  """An array that is known when the file is written.

  Attributes:
    array: the values. An axis with the size of the batch has size 1 here.
    label: path of the parameter that it comes from, or "".
  """

  array: np.ndarray
  label: str = ""


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor that the file computes.

  Attributes:
    name: its name in the file.
    shape: sizes of the logical axes.
    order: the logical axis of each stored axis.
    dtype: type of the elements.
    sizes: sizes of the logical axes in the file: 1 where the tensor is repeated along
      an axis, else as in `shape`.
  """

  name: str
  shape: tuple[int, ...]
  order: tuple[int, ...]
  dtype: np.dtype[Any]
  sizes: tuple[int, ...]

  def place(self, axis: int) -> int:
    """Returns the stored axis of a logical axis."""
    return self.order.index(axis)

  @property
  def stored_sizes(self) -> list[int]:
    """The sizes of the stored axes."""
    return [self.sizes[axis] for axis in self.order]


Value = Constant | Stored


def usual_order(rank: int) -> tuple[int, ...]:
  """Returns the order in which convolutions store a tensor of this rank."""
  return (0, 3, 1, 2) if rank == 4 else tuple(range(rank))


class Graph:
  """The nodes and constants of a file.

  Attributes:
    nodes: in the order of computation.
    constants: arrays by name.
    scope: path of the module that is being written.
    reduced: of each sum and maximum: the operation, its input, and the axes.
    counts: how many values each value of such a tensor sums up, and the rank of the
      input.
  """

  def __init__(self) -> None:
    self.nodes: list[Node] = []
    self.constants: dict[str, np.ndarray] = {}
    self.scope = ""
    self.reduced: dict[str, tuple[str, Stored, tuple[int, ...]]] = {}
    self.counts: dict[str, tuple[int, int]] = {}
    self._names: dict[str, int] = {}
    self._known: dict[Any, str] = {}

  def new_name(self, name: str) -> str:
    """Returns the name, with a number if it is taken."""
    number = self._names[name] = self._names.get(name, 0) + 1
    return name if number == 1 else f"{name}_{number}"

  def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
    """Adds a node and returns the name of its output."""
    output = self.new_name(f"{self.scope}/{op}" if self.scope else op)
    self.nodes.append(Node(op, output, list(inputs), output, attributes))
    return output

  def add(
    self,
    op: str,
    inputs: Sequence[str],
    like: Any,
    order: Sequence[int],
    sizes: Sequence[int] | None = None,
    **attributes: Any,
  ) -> Stored:
    """Adds a node and returns its output.

    Args:
      op: the ONNX operation.
      inputs: names of tensors or constants.
      like: has the shape and dtype of the output.
      order: see `Stored`.
      sizes: see `Stored`; None is the shape.
      **attributes: attributes of the node.
    """
    name = self.node(op, inputs, **attributes)
    shape = tuple(like.shape)
    return Stored(
      name, shape, tuple(order), np.dtype(like.dtype), tuple(sizes or shape)
    )

  def constant(self, array: Any, label: str = "") -> str:
    """Adds a constant, once for equal small ones, and returns its name."""
    array = np.asarray(array)
    key = (array.dtype, array.shape, array.tobytes()) if array.size < 16 else None
    if key in self._known:
      return self._known[key]
    name = self.new_name(label or "constant")
    self.constants[name] = array
    if key:
      self._known[key] = name
    return name

  def ordered(self, value: Value, order: Sequence[int]) -> str:
    """Returns the name of a value whose axes are stored in the given order."""
    order = tuple(order)
    if isinstance(value, Constant):
      if value.array.ndim == 0:
        return self.constant(value.array, value.label)
      return self.constant(value.array.transpose(order), value.label)
    if value.order == order:
      return value.name
    moved = [axis for axis in value.order if value.sizes[axis] > 1]
    if moved == [axis for axis in order if value.sizes[axis] > 1]:
      return self.reshape(value.name, [value.sizes[axis] for axis in order])
    key = value.name, order
    if key not in self._known:
      perm = [value.place(axis) for axis in order]
      self._known[key] = self.node("Transpose", [value.name], perm=perm)
    return self._known[key]

  def reshape(self, name: str, sizes: Sequence[int]) -> str:
    """Reshapes to stored sizes."""
    free = [-1 if size % BATCH == 0 else size for size in sizes]
    if free.count(-1) > 1:
      raise UnsupportedError("a reshape with two axes of the batch")
    return self.node("Reshape", [name, self.constant(np.array(free, np.int64))])

  def whole(self, value: Stored) -> Stored:
    """Returns the tensor with all its repetitions written out."""
    if value.sizes == value.shape:
      return value
    sizes = [value.shape[axis] for axis in value.order]
    if any(
      size % BATCH == 0 and value.sizes[axis] == 1
      for size, axis in zip(sizes, value.order, strict=True)
    ):
      raise UnsupportedError("a tensor that is repeated for each image of the batch")
    target = np.array([1 if size % BATCH == 0 else size for size in sizes], np.int64)
    name = self.node("Expand", [value.name, self.constant(target)])
    return dataclasses.replace(value, name=name, sizes=value.shape)
