"""Runs the pickles of state dicts, and nothing else.

A pickle is a program for a small stack machine. `Machine` has only the instructions
that a state dict needs and knows only the globals of `_GLOBALS`; it imports nothing
and calls nothing by name. Any other object of a pickle, such as `argparse.Namespace`,
becomes a `Refused`, which only matters if a tensor is made of it. An instruction costs
about the same for any argument, and the number of instructions is limited.
"""

import dataclasses
import io
import os
import pickletools
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from resnet_jax.runtime.errors import UserError

DTYPES = {
  "FloatStorage": np.dtype("<f4"),
  "DoubleStorage": np.dtype("<f8"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
  # Weights have none of these dtypes, but other tensors of a file may. In files of
  # PyTorch before 1.6, the size of the dtype says how many bytes to skip.
  "ComplexFloatStorage": np.dtype("<c8"),
  "ComplexDoubleStorage": np.dtype("<c16"),
  "QInt8Storage": np.dtype("i1"),
  "QUInt8Storage": np.dtype("u1"),
  "QInt32Storage": np.dtype("<i4"),
  "storage.UntypedStorage": np.dtype("u1"),
}


@dataclasses.dataclass
class Storage:
  """Numbers of one dtype; `data` is their bytes, or None if they are not found."""

  name: str
  dtype: np.dtype
  numel: int
  data: np.ndarray | None = None
  problem: str = "it is not in the file"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage; offset, shape and strides are in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass(eq=False, frozen=True, slots=True)
class Refused:
  """Stands for an object that is not created; `what` says what it would be."""

  what: str


# A pickle can pass anything to these functions; the code that uses a tensor checks it.
def _rebuild_tensor(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  requires_grad: object = False,
  hooks: object = None,
  metadata: object = None,
) -> Tensor:
  if metadata:  # Conjugated or negated numbers.
    storage = Refused("a lazy view; save its .clone()")
  return Tensor(storage, offset, shape, strides)


def _size(shape: Any) -> Any:
  return shape  # Not a copy, because a pickle could ask for many.


def _ordered_dict(items: Iterable[tuple[Any, Any]] = ()) -> dict[str | int, Any]:
  """Makes an OrderedDict from a list of pairs, as Python 2 pickles it."""
  made: dict[str | int, Any] = {}
  for key, value in items:
    _set_item(made, key, value)
  return made


def _set_item(target: dict[str | int, Any], key: Any, value: Any) -> None:
  if not isinstance(target, dict):
    raise UserError(f"it sets a key of a {type(target).__name__}, which is no dict")
  # It could take forever to hash tuples of tuples, and hashes of large numbers collide.
  # No useful tensor has such a key.
  if isinstance(key, str) or (isinstance(key, int) and 0 <= key < _MOST_INTEGER):
    target[key] = value


_FUNCTIONS: dict[str, Callable[..., Any]] = {
  "collections.OrderedDict": _ordered_dict,
  "torch.Size": _size,
  "torch._utils._rebuild_tensor": _rebuild_tensor,
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}
_GLOBALS = (
  _FUNCTIONS
  | {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
  # Tensor types, which the tar files of the first PyTorch versions name. Nothing uses
  # them.
  | {
    f"torch.{device}{name.replace('Storage', 'Tensor')}": None
    for name in DTYPES
    for device in ("", "cuda.")
  }
)
_LITERALS = {
  *("NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "LONG1", "LONG4", "FLOAT"),
  *("BININT", "BININT1", "BININT2", "BINFLOAT", "UNICODE", "BINUNICODE"),
  *("SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# ResNet-1202, with about 8,000 tensors, takes 250,000. An instruction of one byte may
# create an object of 80 bytes, so this bounds the memory that a pickle takes.
_MOST_INSTRUCTIONS = 500_000
_MOST_ARGUMENTS = 8  # Of a call; `_rebuild_tensor_v2` has seven.
_MOST_REFUSED = 100  # Names that are kept for a message.
_MOST_INTEGER = 2**32
_LONGEST_STRING = 1000  # In bytes. Longer strings name nothing and are skipped.
# Python may store each character of a string in four bytes. So this many bytes of a
# string may take about the memory of one object, and count as one instruction.
_BYTES_PER_INSTRUCTION = 16
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# Number of bytes of the size field before an argument.
_SIZES = {
  pickletools.TAKEN_FROM_ARGUMENT1: 1,
  pickletools.TAKEN_FROM_ARGUMENT4: 4,
  pickletools.TAKEN_FROM_ARGUMENT4U: 4,
  pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class Machine:
  """Runs pickles.

  Attributes:
    refused: collects the first globals that are asked for and not allowed, in order.
    find_persistent: returns the object that a pickle names by its persistent id.
  """

  def __init__(self, find_persistent: Callable[[Any], Any], refused: dict[str, None]):
    self.refused = refused
    self._left = _MOST_INSTRUCTIONS
    self._find_persistent = find_persistent

  def load(self, file: BinaryIO) -> Any:
    """Returns the object of the pickle at the file's position."""
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []  # Stacks below the marks.
    self._memo: dict[int, Any] = {}
    name = ""
    while name != "STOP":
      opcode = _OPCODES[file.read(1)]
      name = opcode.name
      self._count(1)
      self._run(name, self._argument(opcode, file))
    return self._stack.pop()

  def _argument(self, opcode: pickletools.OpcodeInfo, file: BinaryIO) -> Any:
    """Reads what follows the instruction's code, as `pickletools.genops` does."""
    if opcode.arg is None:
      return None
    kind = opcode.arg.n
    if kind == pickletools.UP_TO_NEWLINE:
      lines = 2 if opcode.name in ("GLOBAL", "INST") else 1
      content = b"".join(file.readline(_LONGEST_STRING) for _ in range(lines))
    elif kind in _SIZES:
      content = file.read(_SIZES[kind])
      size = int.from_bytes(content, "little")
      if size > _LONGEST_STRING:
        file.seek(size, os.SEEK_CUR)
        return Refused("a long string")
      content += file.read(size)
    else:  # Arguments of a fixed size.
      return opcode.arg.reader(file)
    self._count(len(content) // _BYTES_PER_INSTRUCTION)
    return opcode.arg.reader(io.BytesIO(content))

  def _count(self, instructions: int) -> None:
    self._left -= instructions
    if self._left < 0:
      raise UserError(f"its pickles are longer than {_MOST_INSTRUCTIONS} instructions")

  def _pop_to_mark(self) -> list[Any]:
    items, self._stack = self._stack, self._below.pop()
    return items

  def _run(self, name: str, argument: Any) -> None:
    stack = self._stack
    if name in ("PROTO", "FRAME", "STOP"):
      pass
    elif name in _LITERALS:
      stack.append(_CONSTANTS.get(name, argument))
    elif name == "MARK":
      self._below.append(stack)
      self._stack = []
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
      if not 0 <= argument < _MOST_INTEGER:  # Hashes of large numbers collide.
        raise UserError("its memo has too large a number")
      self._memo[argument] = stack[-1]
    elif name == "MEMOIZE":
      self._memo[len(self._memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
      stack.append(self._memo[argument])
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
      stack.append({"D": {}, "L": [], "T": ()}[name[6]])
    elif name == "TUPLE":
      items = self._pop_to_mark()
      self._stack.append(tuple(items))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
      count = int(name[-1])
      stack[-count:] = [tuple(stack[-count:])]
    elif name == "POP":
      if stack:
        stack.pop()
      else:
        self._pop_to_mark()
    elif name == "POP_MARK":
      self._pop_to_mark()
    elif name == "EMPTY_SET":
      stack.append(Refused("a set"))
    elif name == "FROZENSET":
      self._pop_to_mark()
      self._stack.append(Refused("a set"))
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
      items = [stack.pop()] if name == "APPEND" else self._pop_to_mark()
      if not isinstance(self._stack[-1], Refused):
        self._stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
      items = [*self._pop_pair()] if name == "SETITEM" else self._pop_to_mark()
      if not isinstance(self._stack[-1], Refused):
        for key, value in zip(items[::2], items[1::2], strict=True):
          _set_item(self._stack[-1], key, value)
    elif name in ("GLOBAL", "STACK_GLOBAL"):
      stack.append(self._global(argument or self._joined()))
    elif name == "BINPERSID":
      stack.append(self._find_persistent(stack.pop()))
    elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
      if name == "NEWOBJ_EX":
        stack.pop()  # Keyword arguments, which no function here takes.
      stack.append(self._call(*self._pop_pair()))
    elif name == "INST":  # A class and its arguments in one, from protocol 0.
      arguments = self._pop_to_mark()
      self._stack.append(self._call(self._global(argument), arguments))
    elif name == "OBJ":
      function, *arguments = self._pop_to_mark()
      self._stack.append(self._call(function, arguments))
    elif name == "BUILD":
      # Drops attributes; an OrderedDict has `_metadata`, the versions of its modules.
      stack.pop()
    else:
      raise UserError(f"pickle instruction {name} is not allowed")

  def _pop_pair(self) -> tuple[Any, Any]:
    second = self._stack.pop()
    return self._stack.pop(), second

  def _joined(self) -> str:
    names = self._pop_pair()
    # A long name from the memo could be joined and stored many times.
    if sum(map(len, names)) > 200:
      raise UserError("it asks for a global whose name is too long")
    return " ".join(names)

  def _global(self, name: str) -> Any:
    name = name.replace(" ", ".")
    if name in _GLOBALS:
      return _GLOBALS[name]
    name = name[:80]  # Messages repeat it.
    if len(self.refused) < _MOST_REFUSED:
      self.refused[name] = None
    return Refused(name)

  def _call(self, function: Any, arguments: Any) -> Any:
    if isinstance(function, Refused):
      return function
    if not any(function is known for known in _FUNCTIONS.values()):
      raise UserError("something that is no function is called")
    # The memo can give the same tuple to any number of calls.
    if len(arguments) > _MOST_ARGUMENTS:
      raise UserError(f"a function is called with {len(arguments)} arguments")
    if function is _ordered_dict and arguments:
      self._count(len(arguments[0]))
    return function(*arguments)
