"""Reads what `torch.save` wrote, without PyTorch and without running any of its code.

A file of PyTorch is a pickle (`torch_pickle.py`) and the raw numbers beside it. Three
containers are read: zip (since PyTorch 1.6), the pickles one after the other before
it, and the tar of the first versions. Numbers stay in the file, mapped into memory,
until somebody copies them. Files come from anywhere: nothing here takes memory or
time for what a file only claims to hold.
"""

import io
import math
import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from resnet_jax.runtime.errors import UserError
from resnet_jax.weights.torch_pickle import Machine, Refused, Storage, Tensor

# Globals that a pickle asked for and may not have, in order.
_Names = dict[str, None]
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


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
  refused: _Names = {}
  try:
    with open(path, "rb") as file:
      mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      data = np.frombuffer(mapped, np.uint8)
      if data[:4].tobytes() == b"PK\3\4":
        content = _read_zip(file, data, problems, refused)
      elif data[257:262].tobytes() == b"ustar":
        content = _read_tar(mapped, data, problems, refused)
      else:
        content = _read_legacy(mapped, data, problems, refused)
    if isinstance(content, Refused):
      raise UserError("it holds no state dict; save its state_dict() instead")
    tensors = _state_dict(content, problems)
  except Exception as error:  # Damaged bytes break zipfile, struct and the rest.
    asks = f"it asks for {', '.join(refused)}, of which nothing is run; "
    asks = asks if refused else ""
    # What zipfile, struct and others say of damaged bytes helps nobody.
    said = str(error) if isinstance(error, UserError) else "it ends early or is no such"
    raise UserError(
      f"{path} is no state dict of torch.save, or damaged: {asks}{said}"
    ) from error
  if refused:
    problems.append(f"it asks for {', '.join(refused)}, of which nothing is run")
  arrays = {name: _view(name, tensor, problems) for name, tensor in tensors.items()}
  total = sum(array.nbytes for array in arrays.values() if array is not None)
  if total > len(data):
    problems.append(f"its tensors have {total} bytes, the file only {len(data)}")
  return arrays, problems


def _state_dict(content: Any, problems: list[str]) -> dict[str, Tensor]:
  for wrapper in ("state_dict", "model", "net"):
    if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
      content = content[wrapper]
  if not isinstance(content, dict):
    raise UserError(f"it holds a {type(content).__name__}, not a state dict")
  others = [str(key) for key, value in content.items() if not _is_tensor(value)]
  if others:
    problems.append(f"no tensors: {', '.join(others)}")
  return {str(key): value for key, value in content.items() if _is_tensor(value)}


def _is_tensor(value: Any) -> bool:
  return isinstance(value, Tensor) and isinstance(value.storage, Storage)


def _view(name: str, tensor: Tensor, problems: list[str]) -> np.ndarray | None:
  """Returns a tensor as a view of its storage, if it lies within."""
  storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
  if not (
    all(type(x) is tuple and len(x) <= 8 for x in (shape, strides))
    and len(shape) == len(strides)
    and all(
      type(n) is int and 0 <= n < 2**48 for n in (tensor.offset, *shape, *strides)
    )
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
  if storage.data is None or math.prod(n or 1 for n in shape) >= 2**48:
    problems.append(f"{name} has no numbers")
    return None
  steps = [stride * storage.dtype.itemsize for stride in strides]
  start = storage.data[tensor.offset :]
  return np.lib.stride_tricks.as_strided(start, shape, steps, writeable=False)


class _Storages(dict[str, Storage]):
  """The storages that a pickle names, by key."""

  def find(self, persistent_id: Any) -> Any:
    """Returns the storage of ("storage", dtype, key, location, numel, [view])."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) < 4:
      raise UserError("a persistent id is no storage")
    if persistent_id[0] == "module":  # A class with its source; it was refused.
      return persistent_id[1]
    kind, dtype, key, _, numel, *view = persistent_id
    if isinstance(dtype, Refused):
      return dtype
    if kind != "storage" or not isinstance(dtype, np.dtype):
      raise UserError("a persistent id is no storage")
    if not isinstance(key, str) or len(key) > 100:  # Messages repeat it.
      raise UserError("a storage has no name or too long a one")
    if type(numel) is not int or any(view) or numel < 0:
      raise UserError("a storage is a view or of unknown size")
    found = self.setdefault(key, Storage(key, dtype, numel))
    if (found.dtype, found.numel) != (dtype, numel):
      raise UserError(f"the storage {key!r:.40} has two sizes")
    return found


def _read_zip(
  file: BinaryIO, data: np.ndarray, problems: list[str], refused: _Names
) -> Any:
  storages = _Storages()
  machine = Machine(storages.find, refused)
  with zipfile.ZipFile(file) as archive:
    entries = {info.filename: info for info in archive.infolist()}
  if sum(info.file_size for info in entries.values()) > len(data):
    raise UserError("its records overlap or are compressed")
  names = [name for name in entries if name.endswith("/data.pkl")]
  if len(names) != 1:
    raise UserError("the archive has no data.pkl, or several")
  (name,) = names
  root = name.removesuffix("data.pkl")
  order = entries.get(root + "byteorder")
  if order and _check_stored(order, data)[:9].tobytes() != b"little":
    raise UserError("its numbers are big-endian")
  content = machine.load(io.BytesIO(_check_stored(entries[name], data).tobytes()))
  for storage in storages.values():
    try:
      info = entries[f"{root}data/{storage.name}"]
      _fill(storage, _check_stored(info, data))
    except (KeyError, ValueError) as error:
      problems.append(f"record {storage.name!r}: {error}")
  return content


def _check_stored(info: zipfile.ZipInfo, data: np.ndarray) -> np.ndarray:
  """Returns the bytes of a zip entry; torch.save does not compress."""
  header = data[info.header_offset :][:30].tobytes()
  if info.compress_type != zipfile.ZIP_STORED or header[:4] != b"PK\3\4":
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
  storage.data = content.view(storage.dtype)


def _read_counted(
  file: mmap.mmap, data: np.ndarray, storage: Storage, problems: list[str]
) -> None:
  """Fills a storage from the file's position: an int64 count, then the numbers."""
  (count,) = struct.unpack("<q", file.read(8))
  size = storage.numel * storage.dtype.itemsize
  start = file.tell()
  if size < 0 or start + size > len(data):
    raise UserError(f"the numbers of {storage.name!r:.40} are not in the file")
  try:
    if count != storage.numel:
      raise UserError(f"it has {count} numbers, not {storage.numel}")
    _fill(storage, data[start : start + size])
  except ValueError as error:
    problems.append(f"record {storage.name!r}: {error}")
  file.seek(start + size)


def _read_legacy(
  file: mmap.mmap, data: np.ndarray, problems: list[str], refused: _Names
) -> Any:
  """Magic, version, machine, object and keys as pickles; then the storages."""
  storages = _Storages()
  machine = Machine(storages.find, refused)
  if (magic := machine.load(file)) != _LEGACY_MAGIC:
    if isinstance(magic, Refused):
      return magic
    raise UserError("it does not begin with PyTorch's magic number")
  _version, _machine, content, keys = (machine.load(file) for _ in range(4))
  for key in keys:
    if not isinstance(key, str) or key not in storages:
      raise UserError("it has numbers of no tensor")
    _read_counted(file, data, storages[key], problems)
  return content


def _read_tar(
  file: mmap.mmap, data: np.ndarray, problems: list[str], refused: _Names
) -> Any:
  """Members `storages`, `tensors` and `pickle`, each a row of pickles and numbers."""
  objects: dict[Any, Any] = {}
  machine = Machine(lambda key: objects[int(key)], refused)
  starts, at = {}, 0
  while len(header := data[at : at + 512].tobytes()) == 512 and header[0]:
    starts[header[:100].rstrip(b"\0").decode()] = at + 512
    size = int(header[124:135], 8)
    if size < 0:
      raise UserError("a member of negative size")
    at += 512 + -(-size // 512) * 512
  file.seek(starts["storages"])
  for _ in range(machine.load(file)):
    key, _location, dtype = machine.load(file)
    if not isinstance(key, int) or not isinstance(dtype, np.dtype):
      raise UserError("a storage of no key or kind")
    (count,) = struct.unpack("<q", data[file.tell() :][:8].tobytes())
    objects[key] = Storage(str(key), dtype, count)
    _read_counted(file, data, objects[key], problems)
  if machine.load(file):
    raise UserError("its storages are views of each other")
  file.seek(starts["tensors"])
  for _ in range(machine.load(file)):
    key, storage_key, _kind = machine.load(file)
    if not isinstance(key, int) or not isinstance(storage_key, int):
      raise UserError("a tensor of no key")
    (rank,) = struct.unpack("<i4x", file.read(8))
    if rank < 0:
      raise UserError("a tensor of negative rank")
    numbers = struct.unpack(f"<{2 * rank + 1}q", file.read(8 * (2 * rank + 1)))
    shape, strides = numbers[:rank], numbers[rank : 2 * rank]
    objects[key] = Tensor(objects[storage_key], numbers[-1], shape, strides)
  file.seek(starts["pickle"])
  return machine.load(file)
