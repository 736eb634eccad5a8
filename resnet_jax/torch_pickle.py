"""Runs the pickles of state dicts, and nothing else.

A pickle is a program for a small stack machine. `Machine` has only the instructions
that a state dict needs and knows only the globals of `_GLOBALS`; it imports nothing
and calls nothing by name.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

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
}


@dataclasses.dataclass
class Storage:
  """Numbers of one dtype; `data` is set once they are found, or stays None."""

  name: str
  dtype: np.dtype
  numel: int
  data: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage; all in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Refused:
  """What a global that is not allowed gives, so that all of them can be listed."""


def _rebuild_tensor(storage, offset, shape, strides, *_) -> Tensor:
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _ordered_dict(items=()) -> dict:
  """The way OrderedDict is pickled by Python 2: a list of pairs."""
  made: dict = {}
  for key, value in items:
    _set_item(made, key, value)
  return made


def _set_item(target: dict, key: Any, value: Any) -> None:
  # Other keys, such as tuples of tuples, could take forever to be hashed.
  if not isinstance(target, dict) or not isinstance(key, str | int):
    raise ValueError(f"a {type(target).__name__} gets the key {key!r:.40}")
  target[key] = value


_FUNCTIONS: dict[str, Callable] = {
  "collections.OrderedDict": _ordered_dict,
  "torch.Size": tuple,
  "torch._utils._rebuild_tensor": _rebuild_tensor,
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}
_GLOBALS = _FUNCTIONS | {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
_LITERALS = {
  *("NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "LONG1", "LONG4", "FLOAT"),
  *("BININT", "BININT1", "BININT2", "BINFLOAT", "UNICODE", "BINUNICODE"),
  *("SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
  *("BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MARK = object()


class Machine:
  """Runs pickles.

  Attributes:
    refused: globals that were asked for and are not allowed.
    find_persistent: gives the object that a pickle names by its persistent id.
  """

  def __init__(self, find_persistent: Callable[[Any], Any]):
    self.refused: dict[str, None] = {}
    self._find_persistent = find_persistent

  def load(self, file: BinaryIO) -> Any:
    """Returns the object of the pickle at the file's position."""
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
      self._run(opcode.name, argument)
    return self._stack.pop()

  def _pop_to_mark(self) -> list[Any]:
    index = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
    items = self._stack[index + 1 :]
    del self._stack[index:]
    return items

  def _run(self, name: str, argument: Any) -> None:
    stack = self._stack
    if name in ("PROTO", "FRAME", "STOP"):
      pass
    elif name in _LITERALS:
      stack.append(_CONSTANTS.get(name, argument))
    elif name == "MARK":
      stack.append(_MARK)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
      self._memo[argument] = stack[-1]
    elif name == "MEMOIZE":
      self._memo[len(self._memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
      stack.append(self._memo[argument])
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
      stack.append({"D": {}, "L": [], "T": ()}[name[6]])
    elif name == "TUPLE":
      stack.append(tuple(self._pop_to_mark()))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
      count = int(name[-1])
      stack[-count:] = [tuple(stack[-count:])]
    elif name in ("APPEND", "APPENDS"):
      items = [stack.pop()] if name == "APPEND" else self._pop_to_mark()
      stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
      items = [*self._pop_pair()] if name == "SETITEM" else self._pop_to_mark()
      if not isinstance(stack[-1], Refused):
        for key, value in zip(items[::2], items[1::2], strict=True):
          _set_item(stack[-1], key, value)
    elif name in ("GLOBAL", "STACK_GLOBAL"):
      stack.append(self._global(argument or " ".join(self._pop_pair())))
    elif name == "BINPERSID":
      stack.append(self._find_persistent(stack.pop()))
    elif name == "REDUCE":
      function, arguments = self._pop_pair()
      stack.append(self._call(function, arguments))
    elif name == "INST":  # A class and its arguments in one, from protocol 0.
      self._pop_to_mark()
      stack.append(self._global(argument))
    elif name == "NEWOBJ":
      stack.append(self._call(*self._pop_pair()))
    elif name == "BUILD":
      stack.pop()  # Attributes of an OrderedDict: `_metadata`, versions of modules.
    else:
      raise ValueError(f"pickle instruction {name} is not allowed")

  def _pop_pair(self) -> tuple[Any, Any]:
    second = self._stack.pop()
    return self._stack.pop(), second

  def _global(self, name: str) -> Any:
    name = name.replace(" ", ".")
    if name in _GLOBALS:
      return _GLOBALS[name]
    self.refused[name] = None
    return Refused()

  def _call(self, function: Any, arguments: Any) -> Any:
    if isinstance(function, Refused):
      return function
    if not any(function is known for known in _FUNCTIONS.values()):
      raise ValueError("something that is no function is called")
    return function(*arguments)
