"""Reads files of `torch.save` without PyTorch and without running any code in them.

A PyTorch file holds a pickle (`torch_pickle.py`) and raw numbers. Three containers are
read: zip (since PyTorch 1.6), consecutive pickles (before 1.6) and the tar of the first
versions. The numbers stay in the file, mapped into memory, until they are copied; the
file must not be shortened before that. Files are not trusted. A false claim about sizes
costs no memory or time. A file that readers could interpret differently is refused.
"""

import io
import json
import math
import mmap
import shlex
import struct
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from resnet_jax.runtime.errors import UserError
from resnet_jax.weights.state_dict import (
  MOST_TENSORS,
  WRAPPERS,
  describe_value,
  few,
  find_state_dict,
)
from resnet_jax.weights.torch_pickle import Machine, Refused, Storage, Tensor

# Refused globals that a pickle asked for, in order.
_Names = dict[str, None]
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MOST_AXES = 8
_LARGEST_DIRECTORY = 2**22


def read(path: Path) -> tuple[dict[str, np.ndarray | None], list[str]]:
  """Reads a state dict, alone or in a checkpoint under a usual key.

  Other objects of the checkpoint are not created and are silently ignored. If there are
  several state dicts, the names of their tensors begin with the key, "model_ema.".

  Args:
    path: a file that `torch.save` wrote.

  Returns:
    The tensors by name, as read-only views of the file, or None if their numbers are
    missing or wrong in the file; and a short list of the problems.

  Raises:
    ValueError: the file holds no state dict of `torch.save`, or is damaged.
  """
  problems: list[str] = []
  refused: _Names = {}
  with open(path, "rb") as file:
    try:
      mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      data = np.frombuffer(mapped, np.uint8)
      if data[:4].tobytes() == b"PK\3\4":
        content = _read_zip(file, path, data, refused)
      elif data[257:262].tobytes() == b"ustar":
        content = _read_tar(file, data, refused)
      else:
        content = _read_legacy(file, data, refused)
      _check_no_module(content, path)
      if isinstance(content, Refused):
        raise UserError("it holds no state dict; save its state_dict() instead")
      tensors = find_state_dict(content, problems)
    except Exception as error:  # Damaged bytes break zipfile, struct and the rest.
      if isinstance(error, _WholeModuleError):
        raise
      # The messages of zipfile, struct and others about damaged bytes help nobody.
      known = isinstance(error, UserError)
      said = str(error) if known else "it is cut off or of another format"
      reasons = "; ".join([*_asks(refused), said])
      raise UserError(
        f"{path} is no state dict of torch.save, or damaged: {reasons}"
      ) from error
  arrays = {
    name: _view(f"{name:.80}", tensor, problems) for name, tensor in tensors.items()
  }
  total = sum(array.nbytes for array in arrays.values() if array is not None)
  if total > len(data):
    problems.append(f"its tensors have {total} bytes, the file only {len(data)}")
  return arrays, [*few(problems), *_asks(refused)] if problems else []


class _WholeModuleError(UserError):
  """The file holds a module, not a state dict."""


def _check_no_module(content: Any, path: Path) -> None:
  """Raises `_WholeModuleError` if there is an object in place of the state dict."""
  places = {"": content}
  if isinstance(content, dict):
    places = {f'["{key}"]': content.get(key) for key in WRAPPERS}
  refused = {key: x.what for key, x in places.items() if isinstance(x, Refused)}
  if not refused or any(isinstance(x, dict | Tensor) for x in places.values()):
    return
  key, what = next(iter(refused.items()))
  if what.partition(".")[0] in (*sys.stdlib_module_names, "__builtin__"):
    return  # No class of a module, but perhaps an attack.
  raise _whole_module(path, what, f"load({_quote(path)}, weights_only=False){key}")


def _whole_module(path: Path, what: str, call: str) -> _WholeModuleError:
  """Returns an error with a shell command that writes the state dict."""
  code = f'import torch; torch.save(torch.{call}.state_dict(), "state.pth")'
  return _WholeModuleError(
    f"{path} holds a whole module ({what}) and no state dict, and none of its code is "
    "run here. If you trust the file, write its state dict where PyTorch and the class "
    f"are installed: python -c {shlex.quote(code)}"
  )


def _quote(path: Path) -> str:
  return json.dumps(str(path), ensure_ascii=False)


def _asks(refused: _Names) -> list[str]:
  names = ", ".join(few([*refused]))
  return [f"it asks for {names}, but none of this is run"] if refused else []


def _view(name: str, tensor: Tensor, problems: list[str]) -> np.ndarray | None:
  """Returns a tensor as a view of its storage; None if it is not inside the storage."""
  storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
  if not isinstance(storage, Storage):
    problems.append(f"{name} cannot be read: its storage is {describe_value(storage)}")
    return None
  if not (
    all(type(x) is tuple and len(x) <= _MOST_AXES for x in (shape, strides))
    and len(shape) == len(strides)
    and all(
      type(n) is int and 0 <= n < 2**48 for n in (tensor.offset, *shape, *strides)
    )
    and math.prod(n or 1 for n in shape) < 2**48
  ):
    problems.append(f"{name} has an impossible offset, shape or strides")
    return None
  last = tensor.offset + sum(
    (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
  )
  size = math.prod(shape)
  if size and (last >= storage.numel or size > storage.numel):
    problems.append(f"{name} of {shape=} is larger than its record {storage.name!r}")
    return None
  if storage.data is None:
    problems.append(f"{name} needs record {storage.name!r}: {storage.problem}")
    return None
  itemsize = storage.dtype.itemsize
  start = tensor.offset * itemsize if size else 0
  steps = [stride * itemsize for stride in strides]
  # NumPy checks again that the view is inside the storage.
  return np.ndarray(shape, storage.dtype, storage.data, start, steps)


class _Storages(dict[str, Storage]):
  """The storages that a pickle names, by key."""

  def find(self, persistent_id: Any) -> Any:
    """Returns the storage of ("storage", dtype, key, location, numel, [view])."""
    if not isinstance(persistent_id, tuple) or not 4 <= len(persistent_id) <= 6:
      raise UserError("a persistent id does not name a storage")
    if persistent_id[0] == "module":  # A class, already refused, and its source.
      return persistent_id[1]
    kind, dtype, key, _, numel, *view = persistent_id
    if isinstance(dtype, Refused):
      return dtype
    if kind != "storage" or not isinstance(dtype, np.dtype):
      raise UserError("a persistent id does not name a storage")
    if not isinstance(key, str) or len(key) > 100:  # Messages repeat it.
      raise UserError("the name of a storage is missing or too long")
    if type(numel) is not int or any(view) or not 0 <= numel < 2**48:
      raise UserError("a storage is a view or of unknown size")
    found = self.setdefault(key, Storage(key, dtype, numel))
    if (found.dtype, found.numel) != (dtype, numel):
      raise UserError(f"the storage {key!r:.40} is named with two sizes or dtypes")
    return found


def _read_zip(file: BinaryIO, path: Path, data: np.ndarray, refused: _Names) -> Any:
  storages = _Storages()
  machine = Machine(storages.find, refused)
  _check_directory(data)
  with zipfile.ZipFile(file) as archive:
    # PyTorch uses these names, even if an extra field gives others. It ignores the case
    # of letters when it finds records.
    records = [(info.orig_filename.lower(), info) for info in archive.infolist()]
  entries = dict(records)
  ((twice, times),) = Counter(name for name, _ in records).most_common(1)
  if times > 1:
    raise UserError(f"it has {times} records of the name {twice!r:.80}")
  if any("/code/__torch__" in name for name in entries):
    raise _whole_module(path, "TorchScript", f"jit.load({_quote(path)})")
  if sum(info.file_size for info in entries.values()) > len(data):
    raise UserError("its records overlap or are compressed")
  programs = [name for name in entries if name.endswith("/data.pkl")]
  if len(programs) != 1:
    raise UserError("the archive has no data.pkl, or several")
  (name,) = programs
  root = name.removesuffix("data.pkl")
  order = entries.get(root + "byteorder")
  if order and _check_stored(order, data)[:9].tobytes() != b"little":
    raise UserError("its numbers are big-endian")
  content = machine.load(io.BytesIO(_check_stored(entries[name], data).tobytes()))
  for storage in storages.values():
    if info := entries.get(f"{root}data/{storage.name.lower()}"):
      try:
        _fill(storage, _check_stored(info, data))
      except UserError as error:
        storage.problem = str(error)
  return content


def _check_directory(data: np.ndarray) -> None:
  """Refuses a zip whose directory is large or ambiguous."""
  end = len(data) - 22
  magic, count, size, start, comment = struct.unpack("<4s6xHLLH", data[-22:].data)
  whole = magic == b"PK\5\6" and comment == 0
  if data[end - 20 : end - 16].tobytes() == b"PK\6\7":  # PyTorch writes zip64.
    (place,) = struct.unpack("<8xQ4x", data[end - 20 : end].data)
    end -= 76
    magic, count, size, start = struct.unpack("<4s28xQQQ", data[end : end + 56].data)
    whole &= magic == b"PK\6\6" and place == end
  if not whole or start + size != end:
    raise UserError("it does not end with its directory")
  if count > MOST_TENSORS or size > _LARGEST_DIRECTORY:
    raise UserError(f"its directory is too large: {count} records in {size} bytes")
  if data[start:end].tobytes().count(b"PK\1\2") != count:
    raise UserError(f"its directory does not have {count} records")


def _check_stored(info: zipfile.ZipInfo, data: np.ndarray) -> np.ndarray:
  """Returns the bytes of a zip entry; torch.save does not compress."""
  header = data[info.header_offset :][:30].tobytes()
  folder = info.external_attr & 0x10  # PyTorch reads nothing from a folder.
  if info.compress_type != zipfile.ZIP_STORED or header[:4] != b"PK\3\4" or folder:
    raise UserError("it is compressed or damaged")
  name_size, extra_size = struct.unpack("<HH", header[26:30])
  start = info.header_offset + 30 + name_size + extra_size
  content = data[start : start + info.file_size]
  if zlib.crc32(content.data) != info.CRC:
    raise UserError("it is truncated or damaged: its checksum is wrong")
  return content


def _fill(storage: Storage, content: np.ndarray) -> None:
  size = storage.numel * storage.dtype.itemsize
  if len(content) != size:
    raise UserError(f"it has {len(content)} bytes, not {size}")
  storage.data = content


def _read_counted(file: BinaryIO, data: np.ndarray, storage: Storage) -> None:
  """Fills a storage from the file's position: an int64 count, then the numbers."""
  (count,) = struct.unpack("<q", file.read(8))
  size = storage.numel * storage.dtype.itemsize
  start = file.tell()
  if size < 0 or start + size > len(data):
    raise UserError(f"the numbers of {storage.name!r:.40} are not in the file")
  if count == storage.numel:
    storage.data = data[start : start + size]
  else:
    storage.problem = f"it has {count} numbers, not {storage.numel}"
  file.seek(start + size)


def _read_legacy(file: BinaryIO, data: np.ndarray, refused: _Names) -> Any:
  """Reads pickles of magic, version, machine, object and keys, then the storages."""
  storages = _Storages()
  machine = Machine(storages.find, refused)
  if (magic := machine.load(file)) != _LEGACY_MAGIC:
    if isinstance(magic, Refused):
      return magic
    raise UserError("it does not begin with PyTorch's magic number")
  _version, _machine, content, keys = (machine.load(file) for _ in range(4))
  left = dict(storages)
  for key in keys:
    if not isinstance(key, str) or key not in storages:
      raise UserError("it has numbers that belong to no tensor")
    if key not in left:
      raise UserError(f"it has the numbers of {key!r} twice")
    _read_counted(file, data, left.pop(key))
  return content


def _read_tar(file: BinaryIO, data: np.ndarray, refused: _Names) -> Any:
  """Reads `storages`, `tensors` and `pickle`, each a series of pickles and numbers."""
  objects: dict[int, Storage | Tensor] = {}

  def find(persistent_id: Any) -> Storage | Tensor:
    if not isinstance(persistent_id, str) or len(persistent_id) > 20:
      raise UserError("a persistent id is no number")
    return objects[int(persistent_id)]

  def new(key: Any) -> int:
    if not isinstance(key, int) or not -(2**63) <= key < 2**63:
      raise UserError("a storage or tensor has no key")
    if key in objects:
      raise UserError(f"it has two storages or tensors of the key {key}")
    return key

  machine = Machine(find, refused)
  starts, at = {}, 0
  while len(header := data[at : at + 512].tobytes()) == 512 and any(header):
    name = header[:100].partition(b"\0")[0].decode()
    if name in starts:
      raise UserError(f"it has two members of the name {name!r}")
    # Refuses links, and headers that change the name of a member.
    if header[156:157] not in (b"0", b"\0") or header[345]:
      raise UserError(f"its member {name!r} is no plain file")
    starts[name] = at + 512
    size = int(header[124:136].partition(b"\0")[0], 8)
    if size < 0:
      raise UserError("a member has a negative size")
    at += 512 + -(-size // 512) * 512
  file.seek(starts["storages"])
  for _ in range(machine.load(file)):
    key, _location, dtype = machine.load(file)
    if not isinstance(dtype, np.dtype):
      raise UserError("a storage has no known dtype")
    (count,) = struct.unpack("<q", data[file.tell() :][:8].tobytes())
    objects[new(key)] = storage = Storage(str(new(key)), dtype, count)
    _read_counted(file, data, storage)
  if machine.load(file):
    raise UserError("its storages are views of each other")
  file.seek(starts["tensors"])
  for _ in range(machine.load(file)):
    key, storage_key, _kind = machine.load(file)
    found = objects.get(storage_key) if isinstance(storage_key, int) else None
    if not isinstance(found, Storage):
      raise UserError("a tensor has no storage")
    (rank,) = struct.unpack("<i4x", file.read(8))
    if not 0 <= rank <= _MOST_AXES:
      raise UserError(f"a tensor has {rank} axes, not 0 to {_MOST_AXES}")
    numbers = struct.unpack(f"<{2 * rank + 1}q", file.read(8 * (2 * rank + 1)))
    shape, strides = numbers[:rank], numbers[rank : 2 * rank]
    objects[new(key)] = Tensor(found, numbers[-1], shape, strides)
  file.seek(starts["pickle"])
  return machine.load(file)
