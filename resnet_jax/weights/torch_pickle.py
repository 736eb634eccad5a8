"""Runs the pickles of state dicts, and nothing else.

A pickle is a program for a small stack machine. `Machine` has only the instructions
that a state dict needs and knows only the globals of `_GLOBALS`; it imports nothing
and calls nothing by name.
"""

import dataclasses
import mmap
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


# What a pickle gives to these is anything; whoever uses a tensor checks it.
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
    raise UserError("a tensor is a lazy view; save its .clone()")
  return Tensor(storage, offset, shape, strides)


def _size(shape: Any) -> Any:
  return shape  # Never a copy: a pickle could ask for many.


def _ordered_dict(items: Iterable[tuple[Any, Any]] = ()) -> dict[str | int, Any]:
  """The way OrderedDict is pickled by Python 2: a list of pairs."""
  made: dict[str | int, Any] = {}
  for key, value in items:
    _set_item(made, key, value)
  return made


def _set_item(target: dict[str | int, Any], key: Any, value: Any) -> None:
  # Tuples of tuples could take forever to be hashed, and large numbers collide.
  fits = isinstance(key, str) or (isinstance(key, int) and 0 <= key < 2**32)
  if not isinstance(target, dict) or not fits:
    raise UserError(f"a {type(target).__name__} gets a {type(key).__name__} as a key")
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
  # What the tar of the first versions calls the kinds of tensors; not used.
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
  *("BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Eight thousand tensors, as ResNet-1202 has, take 250,000. An instruction of one byte
# may make an object of eighty, so this bounds the memory that a pickle takes.
_MOST_INSTRUCTIONS = 500_000
_MOST_REFUSED = 100


class Machine:
  """Runs pickles.

  Attributes:
    refused: gets the globals that are asked for and not allowed, in order.
    find_persistent: gives the object that a pickle names by its persistent id.
  """

  def __init__(self, find_persistent: Callable[[Any], Any], refused: dict[str, None]):
    self.refused = refused
    self._left = _MOST_INSTRUCTIONS
    self._find_persistent = find_persistent

  def load(self, file: BinaryIO | mmap.mmap) -> Any:
    """Returns the object of the pickle at the file's position."""
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []  # Stacks below the marks.
    self._memo: dict[int, Any] = {}
    # It takes whatever has `read` and `readline`; typeshed has it otherwise.
    opcodes = pickletools.genops(file)  # type: ignore[arg-type]
    for opcode, argument, _ in opcodes:
      self._count(1)
      self._run(opcode.name, argument)
    return self._stack.pop()

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
    elif name in ("APPEND", "APPENDS"):
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
    elif name == "REDUCE":
      function, arguments = self._pop_pair()
      stack.append(self._call(function, arguments))
    elif name == "INST":  # A class and its arguments in one, from protocol 0.
      self._pop_to_mark()
      self._stack.append(self._global(argument))
    elif name == "NEWOBJ":
      stack.append(self._call(*self._pop_pair()))
    elif name == "BUILD":
      stack.pop()  # Attributes of an OrderedDict: `_metadata`, versions of modules.
    else:
      raise UserError(f"pickle instruction {name} is not allowed")

  def _pop_pair(self) -> tuple[Any, Any]:
    second = self._stack.pop()
    return self._stack.pop(), second

  def _joined(self) -> str:
    names = self._pop_pair()
    # From the memo, a long name could be joined and kept many times over.
    if sum(map(len, names)) > 200:
      raise UserError("it asks for a global of a name too long")
    return " ".join(names)

  def _global(self, name: str) -> Any:
    name = name.replace(" ", ".")
    if name in _GLOBALS:
      return _GLOBALS[name]
    self.refused[name] = None
    if len(self.refused) > _MOST_REFUSED:
      raise UserError("and more")
    return Refused()

  def _call(self, function: Any, arguments: Any) -> Any:
    if isinstance(function, Refused):
      return function
    if not any(function is known for known in _FUNCTIONS.values()):
      raise UserError("something that is no function is called")
    if function is _ordered_dict and arguments:
      self._count(len(arguments[0]))
    return function(*arguments)
