"""Reads what `torch.save` wrote, without PyTorch and without running any of its code.

A file of PyTorch is a pickle, a program for a small stack machine, and the raw
numbers beside it. `_Machine` runs the few instructions that a state dict needs and
knows only the few globals of `_GLOBALS`; nothing is imported or called by name.
Three containers are read: zip (since PyTorch 1.6), the pickles one after the other
before it, and the tar of the first versions.

Numbers stay in the file, mapped into memory, until somebody copies them.
"""

import dataclasses
import math
import pickletools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_DTYPES = {
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
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass
class _Storage:
  """Numbers of one dtype; `data` is set once they are found, or stays None."""

  name: str
  dtype: np.dtype
  numel: int
  data: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage; all in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Refused:
  """What a global that is not allowed gives, so that all of them can be listed."""


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


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
_GLOBALS = _FUNCTIONS | {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
_LITERALS = {
  *("NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "LONG1", "LONG4", "FLOAT"),
  *("BININT", "BININT1", "BININT2", "BINFLOAT", "UNICODE", "BINUNICODE"),
  *("SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
  *("BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MARK = object()


class _Machine:
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
      if not isinstance(stack[-1], _Refused):
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
    return _Refused()

  def _call(self, function: Any, arguments: Any) -> Any:
    if isinstance(function, _Refused):
      return function
    if not any(function is known for known in _FUNCTIONS.values()):
      raise ValueError("something that is no function is called")
    return function(*arguments)


def read(path: Path) -> tuple[dict[str, np.ndarray | None], list[str]]:
  """Reads a state dict, alone or within a checkpoint under "state_dict" or "model".

  Args:
    path: a file that `torch.save` wrote.

  Returns:
    The tensors by name, as read-only views of the file, None for each whose numbers
    are not in the file as they should be; and all that is wrong, in words.

  Raises:
    ValueError: the file is no such file.
  """
  problems: list[str] = []
  try:
    data = np.memmap(path, np.uint8, "r")
    with open(path, "rb") as file:
      if data[:4].tobytes() == b"PK\3\4":
        content, refused = _read_zip(file, data, problems)
      elif data[257:262].tobytes() == b"ustar":
        content, refused = _read_tar(file, data, problems)
      else:
        content, refused = _read_legacy(file, data, problems)
    if refused:
      problems.append(f"it asks for {', '.join(refused)}, of which nothing is run")
    if isinstance(content, _Refused):
      raise ValueError(f"{problems[-1]}; save its state_dict() instead")
    tensors = _state_dict(content, problems)
  except Exception as error:  # Damaged bytes break zipfile, struct and the rest.
    raise ValueError(
      f"{path} is no file of torch.save, or damaged: {error or type(error).__name__}"
    ) from error
  arrays = {name: _view(name, tensor, problems) for name, tensor in tensors.items()}
  total = sum(array.nbytes for array in arrays.values() if array is not None)
  if total > len(data):
    problems.append(f"its tensors have {total} bytes, the file only {len(data)}")
  return arrays, problems


def _state_dict(content: Any, problems: list[str]) -> dict[str, _Tensor]:
  for wrapper in ("state_dict", "model"):
    if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
      content = content[wrapper]
  if not isinstance(content, dict):
    raise ValueError(f"it holds a {type(content).__name__}, not a state dict")
  others = [str(key) for key, value in content.items() if not _is_tensor(value)]
  if others:
    problems.append(f"no tensors: {', '.join(others)}")
  return {str(key): value for key, value in content.items() if _is_tensor(value)}


def _is_tensor(value: Any) -> bool:
  return isinstance(value, _Tensor) and isinstance(value.storage, _Storage)


def _view(name: str, tensor: _Tensor, problems: list[str]) -> np.ndarray | None:
  """Returns a tensor as a view of its storage, if it lies within."""
  storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
  numbers = (tensor.offset, *shape, *strides)
  if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
    problems.append(f"{name} has offset {tensor.offset}, {shape=} and {strides=}")
    return None
  last = tensor.offset + sum(
    (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
  )
  size = math.prod(shape)
  if size and (last >= storage.numel or size > storage.numel):
    problems.append(f"{name} of {shape=} is larger than its record {storage.name!r}")
    return None
  if storage.data is None:
    return None
  steps = [stride * storage.dtype.itemsize for stride in strides]
  start = storage.data[tensor.offset :]
  return np.lib.stride_tricks.as_strided(start, shape, steps, writeable=False)


class _Storages(dict[str, _Storage]):
  """The storages that a pickle names, by key."""

  def find(self, persistent_id: Any) -> Any:
    """Returns the storage of ("storage", dtype, key, location, numel, [view])."""
    if persistent_id[0] == "module":  # A class with its source; it was refused.
      return persistent_id[1]
    kind, dtype, key, _, numel, *view = persistent_id
    names = {value: name for name, value in _DTYPES.items()}
    if kind != "storage" or not isinstance(dtype, np.dtype) or dtype not in names:
      raise ValueError("a persistent id is no storage")
    if not isinstance(key, str) or type(numel) is not int or any(view):
      raise ValueError(f"the storage {key!r:.40} is a view or of unknown size")
    found = self.setdefault(key, _Storage(key, dtype, numel))
    if (found.dtype, found.numel) != (dtype, numel):
      raise ValueError(f"the storage {key!r:.40} has two sizes")
    return found


def _read_zip(file: BinaryIO, data: np.ndarray, problems: list[str]):
  storages = _Storages()
  machine = _Machine(storages.find)
  with zipfile.ZipFile(file) as archive:
    entries = {info.filename: info for info in archive.infolist()}
    (name,) = [name for name in entries if name.endswith("/data.pkl")]
    root = name.removesuffix("data.pkl")
    if "byteorder" in entries and archive.read(root + "byteorder") != b"little":
      raise ValueError("its numbers are big-endian")
    _check_stored(entries[name], data)
    content = machine.load(archive.open(name))  # type: ignore[arg-type]
    for storage in storages.values():
      try:
        info = entries[f"{root}data/{storage.name}"]
        _fill(storage, _check_stored(info, data))
      except (KeyError, ValueError) as error:
        problems.append(f"record {storage.name!r}: {error}")
  return content, machine.refused


def _check_stored(info: zipfile.ZipInfo, data: np.ndarray) -> np.ndarray:
  """Returns the bytes of a zip entry; torch.save does not compress."""
  header = data[info.header_offset :][:30].tobytes()
  if info.compress_type != zipfile.ZIP_STORED or header[:4] != b"PK\3\4":
    raise ValueError("it is compressed or damaged")
  name_size, extra_size = struct.unpack("<HH", header[26:30])
  start = info.header_offset + 30 + name_size + extra_size
  content = data[start : start + info.file_size]
  if zlib.crc32(content.data) != info.CRC:
    raise ValueError("it is truncated or damaged: its checksum is wrong")
  return content


def _fill(storage: _Storage, content: np.ndarray) -> None:
  size = storage.numel * storage.dtype.itemsize
  if len(content) != size:
    raise ValueError(f"it has {len(content)} bytes, not {size}")
  storage.data = content.view(storage.dtype)


def _read_counted(
  file: BinaryIO, data: np.ndarray, storage: _Storage, problems: list[str]
) -> None:
  """Fills a storage from the file's position: an int64 count, then the numbers."""
  (count,) = struct.unpack("<q", file.read(8))
  size = storage.numel * storage.dtype.itemsize
  start = file.tell()
  try:
    if count != storage.numel:
      raise ValueError(f"it has {count} numbers, not {storage.numel}")
    _fill(storage, data[start : start + size])
  except ValueError as error:
    problems.append(f"record {storage.name!r}: {error}")
  file.seek(start + size)


def _read_legacy(file: BinaryIO, data: np.ndarray, problems: list[str]):
  """Magic, version, machine, object and keys as pickles; then the storages."""
  storages = _Storages()
  machine = _Machine(storages.find)
  magic = machine.load(file)
  if isinstance(magic, _Refused):
    return magic, machine.refused
  if magic != _LEGACY_MAGIC:
    raise ValueError("it does not begin with PyTorch's magic number")
  _version, _machine, content, keys = (machine.load(file) for _ in range(4))
  for key in keys:
    _read_counted(file, data, storages[key], problems)
  return content, machine.refused


def _read_tar(file: BinaryIO, data: np.ndarray, problems: list[str]):
  """Members `storages`, `tensors` and `pickle`, each a row of pickles and numbers."""
  objects: dict[Any, Any] = {}
  machine = _Machine(lambda key: objects[int(key)])
  with tarfile.open(fileobj=file, mode="r:") as tar:
    starts = {member.name: member.offset_data for member in tar.getmembers()}
  file.seek(starts["storages"])
  for _ in range(machine.load(file)):
    key, _location, dtype = machine.load(file)
    (count,) = struct.unpack("<q", data[file.tell() :][:8].tobytes())
    objects[key] = _Storage(str(key), dtype, count)
    _read_counted(file, data, objects[key], problems)
  if machine.load(file):
    raise ValueError("its storages are views of each other")
  file.seek(starts["tensors"])
  for _ in range(machine.load(file)):
    key, storage_key, _kind = machine.load(file)
    (rank,) = struct.unpack("<i4x", file.read(8))
    numbers = struct.unpack(f"<{2 * rank + 1}q", file.read(8 * (2 * rank + 1)))
    shape, strides = numbers[:rank], numbers[rank : 2 * rank]
    objects[key] = _Tensor(objects[storage_key], numbers[-1], shape, strides)
  file.seek(starts["pickle"])
  return machine.load(file), machine.refused
