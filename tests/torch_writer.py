"""Writes files like `torch.save`, without PyTorch; arrays stand for tensors.

Views of one array share its storage, as tensors do.
"""

import dataclasses
import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np

CONTAINERS = ("zip", "legacy", "tar")
_KINDS = {
  "float32": "Float",
  "float64": "Double",
  "float16": "Half",
  "bfloat16": "BFloat16",
  "int64": "Long",
  "int32": "Int",
  "int16": "Short",
  "int8": "Char",
  "uint8": "Byte",
  "bool": "Bool",
}


@dataclasses.dataclass(eq=False)
class Global:
  """Is pickled as a global, which need not exist."""

  module: str
  name: str

  def __call__(self):
    raise AssertionError("pickle only wants something that can be called")


class Call:
  """Is pickled as a call of a global."""

  def __init__(self, function: Global, *arguments):
    self.function, self.arguments = function, arguments

  def __reduce__(self):
    return self.function, self.arguments


@dataclasses.dataclass(eq=False)
class View:
  """A tensor over an array's numbers, as NumPy could not make it.

  Offset and strides are numbers of elements.
  """

  array: np.ndarray
  offset: object
  shape: object
  strides: object


def write(content, container: str) -> bytes:
  """Returns a file of one of `CONTAINERS`."""
  return pack(members(content, container), container)


def members(content, container: str) -> dict[str, bytes]:
  """Returns the parts of a file by name."""
  return {"zip": _zip, "legacy": _legacy, "tar": _tar}[container](content)


def pack(parts: dict[str, bytes], container: str, compress=zipfile.ZIP_STORED) -> bytes:
  """Joins the parts of a file."""
  file = io.BytesIO()
  match container:
    case "zip":
      with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
          archive.writestr(zipfile.ZipInfo(f"archive/{name}"), part, compress)
    case "legacy":
      file.write(b"".join(parts.values()))
    case "tar":
      with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, part in parts.items():
          info = tarfile.TarInfo(name)
          info.size = len(part)
          archive.addfile(info, io.BytesIO(part))
        size = archive.offset + 2 * tarfile.BLOCKSIZE
      file.truncate(size)  # `tarfile` pads files with zeros to 10 kB.
  return file.getvalue()


@dataclasses.dataclass(eq=False)
class _Storage:
  key: int
  array: np.ndarray


class _Pickler(pickle._Pickler):
  """Python's own pickler, because only it allows missing globals."""

  def __init__(self, container: str):
    self.file = io.BytesIO()
    super().__init__(self.file, 2)
    self.container = container
    self.storages: list[np.ndarray] = []
    self.tensors: list[np.ndarray | View] = []

  def persistent_id(self, value):
    if isinstance(value, _Storage):
      rest = (None,) if self.container == "legacy" else ()
      kind = _kind(value.array, "Storage")
      return "storage", kind, str(value.key), "cpu", value.array.size, *rest
    if isinstance(value, np.ndarray | View) and self.container == "tar":
      self.tensors.append(value)
      return str(-len(self.tensors))
    return None

  def reducer_override(self, value):
    if not isinstance(value, np.ndarray | View):
      return NotImplemented
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return rebuild, (*self.place(value), False, OrderedDict())

  def place(self, tensor: np.ndarray | View) -> tuple:
    """Returns its storage, offset, shape and strides."""
    root = tensor.array if isinstance(tensor, View) else tensor
    while isinstance(root.base, np.ndarray):
      root = root.base
    keys = [key for key, known in enumerate(self.storages) if known is root]
    if not keys:
      keys = [len(self.storages)]
      self.storages.append(root)
    storage = _Storage(keys[0], root)
    if isinstance(tensor, View):
      return storage, tensor.offset, tensor.shape, tensor.strides
    offset = (tensor.ctypes.data - root.ctypes.data) // root.itemsize
    return (
      storage,
      offset,
      tensor.shape,
      tuple(s // root.itemsize for s in tensor.strides),
    )

  def save_name(self, value: Global) -> None:
    self.write(f"c{value.module}\n{value.name}\n".encode())

  dispatch = pickle._Pickler.dispatch | {Global: save_name}


def _kind(array: np.ndarray, of: str) -> Global:
  return Global("torch", _KINDS[array.dtype.name] + of)


def _dump(content, container: str = "") -> tuple[bytes, _Pickler]:
  pickler = _Pickler(container)
  pickler.dump(content)
  return pickler.file.getvalue(), pickler


def _counted(array: np.ndarray) -> bytes:
  return struct.pack("<q", array.size) + array.tobytes("A")


def _zip(content) -> dict[str, bytes]:
  program, pickler = _dump(content, "zip")
  records = {f"data/{key}": a.tobytes("A") for key, a in enumerate(pickler.storages)}
  return {"data.pkl": program, "byteorder": b"little", **records, "version": b"3\n"}


def _legacy(content) -> dict[str, bytes]:
  program, pickler = _dump(content, "legacy")
  system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
  start = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, system)]
  keys = pickle.dumps([str(key) for key in range(len(pickler.storages))], 2)
  numbers = b"".join(map(_counted, pickler.storages))
  return {
    "start": b"".join(start),
    "program": program,
    "keys": keys,
    "numbers": numbers,
  }


def _tar(content) -> dict[str, bytes]:
  program, pickler = _dump(content, "tar")
  tensors = [pickle.dumps(len(pickler.tensors), 2)]
  for number, tensor in enumerate(pickler.tensors, 1):
    storage, offset, shape, strides = pickler.place(tensor)
    row = (-number, storage.key, _kind(storage.array, "Tensor"))
    numbers = (*shape, *strides, offset)
    packed = struct.pack(f"<i4x{len(numbers)}q", len(shape), *numbers)
    tensors += [_dump(row)[0], packed]
  storages = [pickle.dumps(len(pickler.storages), 2)]
  for key, array in enumerate(pickler.storages):
    storages += [_dump((key, "cpu", _kind(array, "Storage")))[0], _counted(array)]
  storages.append(pickle.dumps([], 2))  # No storages are views of others.
  return {
    "storages": b"".join(storages),
    "tensors": b"".join(tensors),
    "pickle": program,
  }
