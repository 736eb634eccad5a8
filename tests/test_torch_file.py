"""Files of torch.save are read exactly or refused; no code in them runs."""

import argparse
import contextlib
import datetime
import functools
import io
import itertools
import os
import pickle
import pickletools
import random
import re
import shlex
import signal
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from torch_writer import CONTAINERS, Call, Global, View, members, pack, write

import resnet_jax
from resnet_jax.weights import read_class_names, state_dict, torch_checkpoint
from resnet_jax.weights import tensors as reader

# Reading may take this many bytes more than twice the file; Python itself needs them.
SPARE = 2**16
FLOATS = np.arange(24, dtype=np.float32)


def make_state() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  conv = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
  return OrderedDict(
    {
      "conv.weight": conv.transpose(0, 3, 1, 2),  # channels_last
      "fc.weight": FLOATS[4:10].reshape(2, 3).T,
      "every.second": FLOATS[::2],
      "by.column": np.array([[1, 2, 3], [4, 5, 6]], np.float32, order="F"),
      "counter": np.array(7),
      "none": np.zeros((0, 3), np.float32),
      "half": np.array([1.5, -2], np.float16),
      "brain": np.array([1.5, -2], ml_dtypes.bfloat16),
      "double": np.array([1 / 3]),
      "int": np.array([-1], np.int32),
      "byte": np.array([255], np.uint8),
      "bool": np.array([True, False]),
    }
  )


STATE = make_state()
SMALL = {"a": FLOATS[:6].reshape(2, 3), "b": np.array([1.5], np.float16)}
TAR = write(SMALL, "tar")


def read(folder: Path, data: bytes):
  path = folder / "x.pth"
  path.write_bytes(data)
  return torch_checkpoint.read(path)


def complaint(folder: Path, data: bytes) -> str:
  """Returns all problems that are reported for a file."""
  try:
    _, problems = read(folder, data)
  except ValueError as error:
    return str(error)
  return "; ".join(problems)


def change(part: str, edit, container: str) -> bytes:
  """Returns a file of SMALL in which one part is edited or missing."""
  parts = members(SMALL, container)
  parts[part] = edit(parts[part])
  return pack({key: x for key, x in parts.items() if x is not None}, container)


def assert_same(arrays, expected):
  assert list(arrays) == list(expected)
  for name, array in expected.items():
    assert arrays[name].dtype == array.dtype
    np.testing.assert_array_equal(arrays[name], array)


# What is read.


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_exactly_the_arrays(container, tmp_path):
  arrays, problems = read(tmp_path, write(STATE, container))
  assert not problems
  assert_same(arrays, STATE)
  assert not any(array.flags.writeable for array in arrays.values())


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_writer_of_these_tests_writes_what_torch_reads(container, tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "x.pth"
  path.write_bytes(write(STATE, container))
  tensors = torch.load(path, weights_only=container != "tar")
  assert list(tensors) == list(STATE)
  for name, array in STATE.items():
    assert str(tensors[name].dtype) == f"torch.{array.dtype}"
    assert array.size == 0 or tensors[name].stride() == tuple(
      step // array.itemsize for step in array.strides
    )
    np.testing.assert_array_equal(tensors[name].double(), array.astype(np.float64))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_that_torch_saved_is_read(zipped, tmp_path):
  torch = pytest.importorskip("torch")
  module = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4))
  module = module.to(memory_format=torch.channels_last)
  state = module.state_dict(keep_vars=True)  # With parameters, not only tensors.
  path = tmp_path / "x.pth"
  torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
  arrays, problems = torch_checkpoint.read(path)
  assert not problems
  assert_same(arrays, {name: x.detach().numpy() for name, x in state.items()})


def command_of(info):
  """The shell command in a message, as the arguments of a program."""
  return shlex.split(str(info.value)[str(info.value).index("python -c") :])


@pytest.mark.parametrize("folder", ["x", "it's $HOME"])
@pytest.mark.parametrize("wrapper", ["", "model"])
def test_a_whole_module_is_refused_with_the_line_that_converts_it(
  wrapper, folder, tmp_path
):
  net = Call(Global("timm.models", "ResNet"), ())
  path = tmp_path / folder / "x.pth"
  path.parent.mkdir()
  path.write_bytes(write({wrapper: net, "epoch": 3} if wrapper else net, "zip"))
  with pytest.raises(ValueError, match=r"whole module \(timm\.models\.ResNet") as info:
    torch_checkpoint.read(path)
  place = f'["{wrapper}"]' if wrapper else ""
  call = f'torch.load("{path}", weights_only=False){place}'
  code = f'import torch; torch.save({call}.state_dict(), "state.pth")'
  assert command_of(info) == ["python", "-c", code]


def test_torch_script_is_refused_with_the_line_that_converts_it(tmp_path):
  path = tmp_path / "x.pt"
  path.write_bytes(write(STATE, "zip"))
  with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("x/code/__torch__.py", 1000 * "pass\n")
  with pytest.raises(ValueError, match=r"a whole module \(TorchScript\)") as info:
    torch_checkpoint.read(path)
  code = f'import torch; torch.save(torch.jit.load("{path}").state_dict(), "state.pth")'
  assert command_of(info) == ["python", "-c", code]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("wrapper", state_dict.WRAPPERS)
def test_wrappers_are_opened_whatever_plain_values_are_beside(
  wrapper, container, tmp_path
):
  others = {"epoch": 3, "best": 0.5, "arch": "x", "no": None, "list": [1, (2, {3: 4})]}
  arrays, problems = read(tmp_path, write({**others, wrapper: SMALL}, container))
  assert not problems
  assert_same(arrays, SMALL)


# What training scripts put beside the tensors.
NEIGHBOURS = {
  "namespace": argparse.Namespace(lr=0.1, data=Path("data")),
  "scalar": np.float64(0.5),
  "path": Path("a"),
  "date": datetime.datetime(2026, 1, 2),
  "set": {1, 2},
  "frozen": frozenset("ab"),
  "exception": ValueError("a"),
  "keys": {-1: 0, 0.5: 0, None: 0, (1, 2): 0, np.int64(3): 0, 10**30: 0},
  "history": [{"loss": np.float32(1)}, [argparse.Namespace()]],
  "long": "é" * 10_000,
  "tensor": View(FLOATS, argparse.Namespace(), (2,), (1,)),
  "classes": [Global("classes", f"C{i}") for i in range(200)],
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_objects_beside_the_tensors_are_ignored(name, container, tmp_path):
  if (name, container) == ("tensor", "tar"):
    pytest.skip("a tar stores the offset of a tensor as a number")
  content = {"before": NEIGHBOURS[name], "state_dict": SMALL, "z": NEIGHBOURS[name]}
  arrays, problems = read(tmp_path, write(content, container))
  assert not problems
  assert_same(arrays, SMALL)
  if name != "tensor":  # Among tensors that are read, it would be reported.
    arrays, problems = read(
      tmp_path, write({**SMALL, "x": NEIGHBOURS[name]}, container)
    )
    assert not problems
    assert_same(arrays, SMALL)


@pytest.mark.parametrize(
  ("protocol", "zipped"), [(2, True), (4, True), (5, True), (2, False)]
)
def test_a_checkpoint_of_a_training_script_is_read(protocol, zipped, tmp_path):
  torch = pytest.importorskip("torch")
  module = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4))
  optimizer = torch.optim.Adam(module.parameters())
  module(torch.zeros(2, 2, 3, 3)).sum().backward()
  optimizer.step()
  others = {key: x for key, x in NEIGHBOURS.items() if key not in ("tensor", "classes")}
  content = {
    **others,
    "array": np.arange(1000.0),
    "optimizer": optimizer.state_dict(),
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "complex": torch.zeros(2, dtype=torch.complex64),
    "unsigned": torch.zeros(2, dtype=torch.uint16),
    "model": module.state_dict(),
  }
  path = tmp_path / "x.pth"
  torch.save(
    content,
    path,
    pickle_protocol=protocol,
    _use_new_zipfile_serialization=zipped,
  )
  arrays, problems = torch_checkpoint.read(path)
  assert not problems
  assert_same(arrays, {name: x.numpy() for name, x in module.state_dict().items()})


REFUSED = Call(Global("own", "thing"))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
  "wanted",
  [
    REFUSED,
    Call(Global("own", "thing"), FLOATS),
    [1.0],
    View(FLOATS, 0, (25,), (1,)),
  ],
  ids=["object", "made of a tensor", "list", "outside"],
)
def test_a_parameter_that_is_no_tensor_is_named(wanted, container, tmp_path):
  content = {"state_dict": {**SMALL, "fc.bias": wanted}, "args": REFUSED}
  _, problems = read(tmp_path, write(content, container))
  said = "; ".join(problems)
  assert "fc.bias" in said and "own.thing" in said


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize(
  "place",
  [
    (REFUSED, (1,), (1,)),
    (0, REFUSED, (1,)),
    (0, (REFUSED,), (1,)),
    (0, (1,), REFUSED),
  ],
  ids=["offset", "shape", "size", "strides"],
)
def test_a_tensor_made_of_a_refused_object_is_named(place, container, tmp_path):
  arrays, problems = read(
    tmp_path, write({"wrong": View(FLOATS, *place), "a": FLOATS}, container)
  )
  assert arrays.pop("wrong") is None
  assert_same(arrays, {"a": FLOATS})
  assert "wrong" in problems[0] and "own.thing" in problems[1]


@pytest.mark.parametrize("offset", [0, 24, 99])
def test_a_tensor_without_numbers_may_lie_anywhere(offset, tmp_path):
  view = View(FLOATS, offset, (0, 3), (3, 1))
  assert_same(
    read(tmp_path, write({"a": view}, "zip"))[0], {"a": np.zeros((0, 3), "f4")}
  )


def test_ordered_dicts_of_python_2_are_read(tmp_path):
  pairs = [[name, array] for name, array in SMALL.items()]
  content = Call(Global("collections", "OrderedDict"), pairs)
  assert_same(read(tmp_path, write(content, "legacy"))[0], SMALL)


def test_numbers_stay_in_the_file_until_they_are_copied(tmp_path):
  data = write({"a": np.zeros(2**21, np.float32)}, "zip")
  tracemalloc.start()
  arrays, _ = read(tmp_path, data)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert arrays["a"].nbytes == 2**23
  assert peak < SPARE


# What is refused: code.


def text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def ask(module: str, attribute: str) -> bytes:
  return f"c{module}\n{attribute}\n".encode()


SYSTEM = ask("posix", "system")
TUPLE, MAP = ask("builtins", "tuple"), ask("builtins", "map")
GETATTR, IMPORT = ask("builtins", "getattr"), ask("builtins", "__import__")
# Programs that run the shell command in place of %b, and the globals that they use.
ATTACKS = {
  "reduce": (SYSTEM + b"%b\x85R", ["posix.system"]),
  "inst": (b"(%biposix\nsystem\n", ["posix.system"]),
  "obj": (b"(" + SYSTEM + b"%bo", ["posix.system"]),
  "newobj": (
    TUPLE + MAP + SYSTEM + b"%b\x85\x86\x81\x85\x81",
    ["builtins.tuple", "builtins.map", "posix.system"],
  ),
  "newobj_ex": (
    TUPLE + MAP + SYSTEM + b"%b\x85\x86}\x92\x85}\x92",
    ["builtins.tuple", "builtins.map", "posix.system"],
  ),
  "stack_global": (text("posix") + text("system") + b"\x93%b\x85R", ["posix.system"]),
  "dotted": (text("shutil") + text("os.system") + b"\x93%b\x85R", ["shutil.os.system"]),
  "getattr": (
    GETATTR + IMPORT + text("posix") + b"\x85R" + text("system") + b"\x86R%b\x85R",
    ["builtins.getattr", "builtins.__import__"],
  ),
  "nested": (
    ask("collections", "OrderedDict") + text("a") + SYSTEM + b"%b\x85R\x86\x85\x85R",
    ["posix.system"],
  ),
  "as a key": (b"}" + SYSTEM + b"%b\x85RNs", ["posix.system"]),
  "appended to": (SYSTEM + b"%b\x85RNa", ["posix.system"]),
  "as an id": (SYSTEM + b"%b\x85RQ", ["posix.system"]),
}
PLACES = {
  "top": b"%b",
  "value": b"}" + text("a") + b"%bs",
  "sibling": b"}(" + text("state_dict") + b"}" + text("args") + b"%bu",
}


def program(code: bytes) -> bytes:
  return b"\x80\x04" + code + b"."


def zip_of(code: bytes, **parts: bytes) -> bytes:
  return pack({"data.pkl": program(code), **parts}, "zip")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_code_is_not_run_and_every_global_is_named(attack, place, tmp_path):
  code, names = ATTACKS[attack]
  ran = tmp_path / "ran"
  code = PLACES[place] % (code % text(f"touch {ran}"))
  with contextlib.suppress(Exception):
    pickle.loads(program(code))
  ran.unlink()  # pickle does run it.
  said = complaint(tmp_path, zip_of(code))
  assert not ran.exists()
  assert [name for name in names if name not in said] == []


@pytest.mark.parametrize(
  ("container", "part"),
  [
    *[("zip", "data.pkl"), ("legacy", "start"), ("legacy", "program")],
    *[("legacy", "keys"), ("tar", "storages"), ("tar", "tensors"), ("tar", "pickle")],
  ],
)
def test_code_is_not_run_wherever_there_are_pickles(container, part, tmp_path):
  ran = tmp_path / "ran"
  attack = program(SYSTEM + text(f"touch {ran}") + b"\x85R")
  data = change(part, lambda x: attack + x, container)
  assert "posix.system" in complaint(tmp_path, data)
  assert not ran.exists()


# What is refused: damage.


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_truncated_file_is_refused_or_whole(container, tmp_path):
  path = tmp_path / "x.pth"
  path.write_bytes(write(SMALL, container))
  for size in reversed(range(path.stat().st_size)):
    os.truncate(path, size)
    with contextlib.suppress(ValueError):
      arrays, problems = torch_checkpoint.read(path)
      if not problems:
        assert_same(arrays, SMALL)


@pytest.mark.parametrize(
  "data",
  [
    change("data/0", lambda x: x[:-4], "zip"),
    change("data/0", lambda x: x + b"1234", "zip"),
    change("data/0", lambda x: None, "zip"),
    # The number of elements in the first storage.
    change("numbers", lambda x: b"\x17" + x[1:], "legacy"),
    change("numbers", lambda x: b"\x19" + x[1:], "legacy"),
    change("keys", lambda x: pickle.dumps(["1"]), "legacy"),
    change("numbers", lambda x: b"", "legacy"),
  ],
  ids=["short", "long", "none", "count-1", "count+1", "no key", "no numbers"],
)
def test_a_record_of_another_size_is_refused(data, tmp_path):
  assert complaint(tmp_path, data)


def test_all_bad_records_are_named_and_others_are_read(tmp_path):
  bad = {"x": np.zeros(5, np.float32), "y": np.zeros(6, np.float32)}
  parts = members({**bad, **SMALL}, "zip")
  parts["data/0"] += b"1234"
  del parts["data/1"]
  arrays, problems = read(tmp_path, pack(parts, "zip"))
  assert arrays.pop("x") is None and arrays.pop("y") is None
  assert_same(arrays, SMALL)
  said = "; ".join(problems)
  assert "'0'" in said and "'1'" in said


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [
    (0, (25,), (1,)),
    (0, (25,), (0,)),
    (0, (5, 5), (1, 1)),
    (0, (1000, 1000), (0, 0)),
    (0, (2**31, 2**31), (0, 0)),
    (1, (24,), (1,)),
    (24, (1,), (1,)),
    (0, (13,), (2,)),
    (-1, (1,), (1,)),
    (0, (-1,), (1,)),
    (23, (24,), (-1,)),
    (2**62, (2,), (1,)),
    (0, (2,), (2**62,)),
    (0, (1,), (2**63 - 1,)),
    (0, (0, 2**63 - 1), (1, 1)),
    (0, (1,) * 65, (1,) * 65),
  ],
)
def test_a_tensor_that_is_not_within_its_record_is_named(
  offset, shape, strides, container, tmp_path
):
  view = View(FLOATS, offset, shape, strides)
  data = write({"wrong": view, "right": SMALL["a"]}, container)
  said = complaint(tmp_path, data)
  assert "wrong" in said or "a tensor has 65 axes" in said  # In a tar, names come last.


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [
    (0, (1,), (2**63,)),
    (0, (0, 2**80), (1, 1)),
    (-(10**5000), (1,), (1,)),
    (2**80, (1,), (1,)),
    (0, (2, 3), (1,)),
    (None, (1,), (1,)),
    (0, (1.0,), (1,)),
    (0, (True,), (1,)),
    (0, "1", "1"),
    (0, (1,), (None,)),
    (0, (SMALL["a"],), (1,)),
  ],
  ids=range(11),  # One case is too long for an id.
)
def test_a_tensor_of_other_than_small_numbers_is_named(
  offset, shape, strides, container, tmp_path
):
  view = View(FLOATS, offset, shape, strides)
  data = write({"wrong": view, "right": SMALL["a"]}, container)
  assert "wrong" in complaint(tmp_path, data)


def test_compressed_entries_are_refused(tmp_path):
  parts = members({"a": np.zeros(99)}, "zip")
  assert "compressed" in complaint(tmp_path, pack(parts, "zip", zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("of", [FLOATS.tobytes(), b"_rebuild_tensor_v2"])
def test_a_wrong_checksum_is_refused(of, tmp_path):
  data = write(SMALL, "zip")
  at = data.index(of) + 5
  damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
  assert "checksum" in complaint(tmp_path, damaged)


def test_big_endian_numbers_are_refused(tmp_path):
  assert "big-endian" in complaint(
    tmp_path, change("byteorder", lambda x: b"big", "zip")
  )


def test_names_of_records_are_found_in_any_case_as_by_pytorch(tmp_path):
  data = write(SMALL, "zip").replace(b"archive/data/0", b"archive/DATA/0")
  arrays, problems = read(tmp_path, data)
  assert not problems
  assert_same(arrays, SMALL)
  data = change("byteorder", lambda x: b"big", "zip")
  data = data.replace(b"archive/byteorder", b"archive/ByteOrder")
  assert "big-endian" in complaint(tmp_path, data)


@pytest.mark.parametrize("kind", ["QUInt4x2Storage", "UntypedStorage"])
def test_numbers_of_an_unknown_kind_are_named(kind, tmp_path):
  data = change("data.pkl", lambda x: x.replace(b"FloatStorage", kind.encode()), "zip")
  assert kind in complaint(tmp_path, data)


def test_a_lazily_negated_tensor_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  negated = torch.complex(torch.zeros(2), torch.ones(2)).conj().imag
  assert negated.is_neg()
  torch.save({"a": negated}, tmp_path / "x.pth")
  arrays, problems = torch_checkpoint.read(tmp_path / "x.pth")
  assert arrays == {"a": None}
  assert "a cannot be read" in problems[0] and "save its .clone()" in problems[0]


@pytest.mark.parametrize("data", [b"", b"x", b"PK\3\4", b"\x80\x02.", bytes(9999)])
def test_what_is_no_such_file_is_refused(data, tmp_path):
  assert "no state dict of torch.save" in complaint(tmp_path, data)


# What is refused: endless time or memory. Files are read in a process of their own,
# because a hang in C cannot be stopped otherwise.

# Nested tuples; each holds the previous one twice, so there are 2**60 in all.
LAUGHS = b"N\x85" + b"".join(bytes([*b"q", i, *b"h", i, 0x86]) for i in range(60))
STORAGE = text("storage") + ask("torch", "FloatStorage")


def tensor_of(storage: bytes, shape: bytes = b"K\x01\x85") -> bytes:
  rebuild = ask("torch._utils", "_rebuild_tensor_v2")
  return rebuild + b"(" + storage + b"Q" + b"K\x00" + shape + b"K\x01\x85tR"


def tar_of(storages=b"", tensors=b"", code=b"}") -> bytes:
  parts = members({}, "tar")
  return pack(
    {
      "storages": storages or parts["storages"],
      "tensors": tensors or parts["tensors"],
      "pickle": program(code),
    },
    "tar",
  )


def with_size(data: bytes, member: int, size: int, kind: bytes = b"0") -> bytes:
  """Returns the tar file with a false size in the header of one member."""
  at = [m.start() - 257 for m in re.finditer(rb"ustar  ", data)][member]
  header = bytearray(data[at : at + 512])
  header[124:136] = size.to_bytes(12, "big", signed=True)
  header[124] |= 0x80
  header[148:157] = b" " * 8 + kind
  header[148:156] = b"%06o\0 " % sum(header)
  return data[:at] + header + data[at + 512 :]


def one_storage(key: bytes, count: int) -> bytes:
  row = program(key + text("cpu") + ask("torch", "ByteStorage") + b"\x87")
  return pickle.dumps(2**40) + row + struct.pack("<q", count)


def legacy_of(code: bytes = b"", keys: bytes = b"") -> bytes:
  parts = members(SMALL, "legacy")
  parts["program"] = program(code) if code else parts["program"]
  parts["keys"] = program(keys) if keys else parts["keys"]
  return pack(parts, "legacy")


def string(size: int) -> bytes:
  return b"X" + struct.pack("<I", size) + b"abc"


def id_of(kind: bytes, more: bytes = b"") -> bytes:
  """Returns code for the persistent id of a storage "0", followed by `more`."""
  return b"(" + text("storage") + kind + text("0") + b"NK\x00" + more + b"tq\x00"


def many_entries(count: int) -> bytes:
  """Returns a zip that is only a directory, whose records are empty."""
  record = struct.pack("<4s42x", b"PK\1\2")
  record = record[:28] + struct.pack("<H", 8) + record[30:]
  directory = b"".join(record + b"%08x" % i for i in range(count))
  numbers = count, count, len(directory), 4
  end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *numbers)
  place = struct.pack("<4sLQL", b"PK\6\7", 0, 4 + len(directory), 1)
  last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 0, 0, 0)
  return b"PK\3\4" + directory + end + place + last


def tar_storages(*keys: bytes) -> bytes:
  """Returns code for storages with these keys and without numbers."""
  kind = ask("torch", "ByteStorage")
  rows = [program(key + text("cpu") + kind + b"\x87") + bytes(8) for key in keys]
  return b"".join([pickle.dumps(len(keys)), *rows, pickle.dumps(None)])


def tar_tensor(key: int, rank: int) -> bytes:
  """Returns code for a tensor in storage 1."""
  numbers = b"\x11" * 8 * (2 * rank + 1)
  row = pickle.dumps((key, 1, None)) + struct.pack("<i4x", rank) + numbers
  return pickle.dumps(1) + row


def missing_records(count: int) -> bytes:
  tensors = [
    text(f"{i:05}") + tensor_of(b"(" + STORAGE + text(f"{i:0100}") + b"NK\x01t")
    for i in range(count)
  ]
  return zip_of(b"}(" + b"".join(tensors) + b"u")


ROW = len(one_storage(b"K\x01", 0)) - len(pickle.dumps(2**40))
MANY = b"".join(b"h\x00" + text(f"{i:03}") + b"\x93" for i in range(999))
ONES = (1,) * 9_999
BOMBS = {
  "tuples, a key": zip_of(b"}" + LAUGHS + b"Ns"),
  "tuples, a shape": zip_of(
    b"}" + text("a") + tensor_of(b"(" + STORAGE + text("0") + b"NK\x01t", LAUGHS) + b"s"
  ),
  "tuples, a storage": zip_of(tensor_of(b"(" + STORAGE + LAUGHS + b"NK\x01t")),
  "tuples, a persistent id": zip_of(LAUGHS + b"Q"),
  "tuples, a module": zip_of(LAUGHS + text("a") + b"\x93"),
  "tuples, a key of legacy": legacy_of(keys=b"]" + LAUGHS + b"a"),
  "tuples, a key of tar": tar_of(one_storage(LAUGHS, 0)),
  "deep tuples": zip_of(b")" + b"\x85" * 20_000),
  "deep tuples, a key": zip_of(b"})" + b"\x85" * 20_000 + b"Ns"),
  "many marks": zip_of(b"(" + b"N" * 100_000 + b"(t" * 100_000 + b"t"),
  "a string of 1 GB": zip_of(string(2**30)),
  "a string of 1 GB in legacy": legacy_of(string(2**30)),
  "a string of 1 GB in tar": tar_of(program(string(2**30))),
  "a string of 2**60": legacy_of(b"\x8d" + struct.pack("<Q", 2**60)),
  "bytes of 1 GB": legacy_of(b"B" + struct.pack("<I", 2**30)),
  "an integer of 1 GB": legacy_of(b"\x8b" + struct.pack("<I", 2**30)),
  "a memo of 2**32": zip_of(b"}r" + b"\xff" * 4),
  "globals of a long name": zip_of(
    b"}" + text("a") + b"(" + text("x" * 99_999) + b"q\x00" + MANY + b"ts"
  ),
  "sizes of a long list": zip_of(
    b"}"
    + text("a")
    + b"(]("
    + b"K\x01" * 50_000
    + b"eq\x00"
    + (ask("torch", "Size") + b"h\x00\x85R") * 500
    + b"ts"
  ),
  "shapes of many": write(
    {f"{i}": View(FLOATS, 0, ONES, (1,)) for i in range(999)}, "zip"
  ),
  "a count back to itself": tar_of(one_storage(b"K\x01", -ROW)),
  "a rank of 2**27": tar_of(
    tensors=pickle.dumps(1)
    + pickle.dumps((1, None, None))
    + struct.pack("<iiq", 2**27, 0, 0)
  ),
  "a tar member of 1 GB": with_size(write(SMALL, "tar"), 0, 2**30, b"L"),
  "a tar member before itself": with_size(write(SMALL, "tar"), 1, -512),
  "a long persistent id": zip_of(
    id_of(ask("torch", "FloatStorage"), b"N" * 200_000) + b"h\x00Q" * 140_000
  ),
  "a long persistent id, refused": zip_of(
    id_of(ask("own", "Storage"), b"N" * 200_000) + b"h\x00Q" * 140_000
  ),
  "many arguments": zip_of(
    ask("torch._utils", "_rebuild_parameter")
    + b"q\x01("
    + b"N" * 150_000
    + b"tq\x00"
    + b"h\x01h\x00R" * 110_000
  ),
  "a memo of one hash": zip_of(
    b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(1, 150_000))
  ),
  "equal keys": zip_of(
    b"("
    + text("a" * 2**20)
    + b"q\x00"
    + text("a" * 2**20)
    + b"q\x01t}"
    + b"h\x00Nsh\x01Ns" * 10_000
  ),
  "spaces in an id of tar": tar_of(
    tar_storages(b"K\x01"),
    code=b"}" + text(" " * 400_000 + "1") + b"q\x00" + b"Qh\x00" * 150_000 + b"s",
  ),
  "keys of tar of one hash": tar_of(
    tar_storages(
      *(
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little", signed=True)
        for i in range(40_000)
      )
    )
  ),
  "many records of zip": many_entries(60_000),
  "a tensor of 100,000 axes": tar_of(tar_storages(b"K\x01"), tar_tensor(2, 100_000)),
  "an emoji": zip_of(b"}" + text("😀" + "a" * 2**21) + b"Ns"),
  "a long name": zip_of(b"}" + text("a" * 2**23) + b"Ns"),
  "a long name of a tensor": zip_of(
    b"}" + text("a" * 999) + tensor_of(b"(" + STORAGE + text("0") + b"NK\x01t") + b"s"
  ),
  "many records that are missing": missing_records(4_999),
  "many values that are no tensors": zip_of(
    b"}(" + b"".join(text(f"{i:09}.weight") + b"N" for i in range(9_999)) + b"u"
  ),
}
READ_APART = """
import pathlib, resource, sys, tracemalloc, types
for name, folder in ("resnet_jax", ""), ("resnet_jax.weights", "/weights"):
  package = types.ModuleType(name)  # Without what it imports.
  package.__path__ = [sys.argv[1] + folder]
  sys.modules[name] = package
from resnet_jax.weights import torch_checkpoint as torch_file
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
tracemalloc.start()
said = ""
try:
  said = "".join(torch_file.read(pathlib.Path(sys.argv[2]))[1])
except ValueError as error:
  said = str(error)
print(tracemalloc.get_traced_memory()[1], len(said))
"""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_takes_neither_time_nor_memory_nor_a_long_message(bomb, tmp_path):
  path = tmp_path / "x.pth"
  path.write_bytes(BOMBS[bomb])
  package = Path(resnet_jax.__file__).parent
  command = [sys.executable, "-c", READ_APART, str(package), str(path)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=20)
  assert done.returncode == 0, done.stderr
  peak, length = map(int, done.stdout.split())
  # Python's objects take several bytes for each byte of a pickle.
  assert peak <= 2 * len(BOMBS[bomb]) + 2**22
  assert length < 3000


# What is refused: files with two meanings.


def twice(container: str, part: str, name: str = "") -> bytes:
  """Returns a file of SMALL with a new first part that has the name of another one."""
  parts = members(SMALL, container)
  other = "~" * len(part)
  data = pack({other: parts[part][::-1], **parts}, container)
  return data.replace(other.encode(), (name or part).encode())


def second_size() -> bytes:
  id_ = b"(" + text("storage") + ask("torch", "%sStorage") + text("0") + b"NK\x01t"
  tensors = [tensor_of(id_ % kind) for kind in (b"Int", b"Float")]
  return b"}(" + text("a") + tensors[0] + text("b") + tensors[1] + b"u"


def with_start_before(data: bytes) -> bytes:
  """Returns a zip whose end record does not count a byte before its directory."""
  at = data.index(b"PK\1\2")
  return data[:at] + b"x" + data[at:]


@pytest.mark.parametrize(
  ("data", "name"),
  [
    (twice("zip", "data/0"), "'archive/data/0'"),
    (twice("zip", "data/0", "DATA/0"), "'archive/data/0'"),
    (twice("zip", "data.pkl"), "'archive/data.pkl'"),
    (twice("zip", "byteorder"), "'archive/byteorder'"),
    (zip_of(second_size()), "'0'"),
    (legacy_of(second_size()), "'0'"),
    (legacy_of(keys=b"](" + text("0") + text("1") + text("0") + b"e"), "'0'"),
    (twice("tar", "storages"), "'storages'"),
    (twice("tar", "tensors"), "'tensors'"),
    (twice("tar", "pickle"), "'pickle'"),
    (TAR[:-1024] + tarfile.TarInfo("").tobuf() + TAR, "'storages'"),
    (tar_of(tar_storages(b"K\x01", b"K\x01")), "key 1"),
    (tar_of(tar_storages(b"K\x01"), tar_tensor(1, 1)), "key 1"),
    (with_size(write(SMALL, "tar"), 0, 0, b"x"), "'storages'"),
    (with_start_before(write(SMALL, "zip")), "directory"),
    (write(SMALL, "zip") + write(SMALL, "zip")[-22:], "directory"),
  ],
)
def test_a_file_that_readers_could_understand_differently_is_refused(
  data, name, tmp_path
):
  assert name in complaint(tmp_path, data)


def test_records_of_zip_have_the_names_that_pytorch_takes(tmp_path):
  """A name does not come from an extra field and does not end at a zero byte."""
  content = {"a": FLOATS, "b": FLOATS[::-1].copy()}
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    for name, part in members(content, "zip").items():
      info = zipfile.ZipInfo(f"archive/{name}")
      if other := {"data/0": b"archive/data/1", "data/1": b"archive/data/0"}.get(name):
        crc = zlib.crc32(info.filename.encode())
        info.extra = struct.pack("<HHBL", 0x7075, 5 + len(other), 1, crc) + other
      archive.writestr(info, part)
  assert_same(read(tmp_path, file.getvalue())[0], content)
  parts = members(SMALL, "zip")
  parts["data/0~"] = parts.pop("data/0")
  data = pack(parts, "zip").replace(b"data/0~", b"data/0\0")
  assert "a needs record '0': it is not in the file" in complaint(tmp_path, data)


# What is refused: random damage.

NUMBERS = (0, 1, -1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1)
PIECES = [
  *(
    bytes([code])
    for code in b"().0123NQRabdehijloqrstu]}\x81\x85\x86\x87\x89\x92\x93\x94"
  ),
  *(b"J" + struct.pack("<i", n) for n in NUMBERS if n < 2**31),
  *(b"\x8a\x08" + struct.pack("<q", n) for n in NUMBERS),
  *(b"\x8a\x09" + b"\xff" * 8 + last for last in (b"\x00", b"\xff")),
  *(b"r" + struct.pack("<I", 2**32 - 1), b"\x8d" + struct.pack("<Q", 2**60)),
  *(b"X" + struct.pack("<I", 2**31), b"\x8b" + struct.pack("<I", 2**31 - 1)),
  *(b"h\x00", b"q\x00", b"h\x01\x85q\x01", b"G" + b"\x7f" * 8, b"I01\n"),
  *(SYSTEM, STORAGE, ask("torch", "Size"), text("a"), text("0"), LAUGHS[:100]),
]
JSON_PIECES = [
  *(str(n).encode() for n in (*NUMBERS, 2**64, 1e99)),
  *(b'"%b"' % x for x in (b"F32", b"F64", b"BF16", b"F8_E4M3", b"I64", b"shape", b"a")),
  *(bytes([x]) for x in b'{}[],:"\\\xff'),
  *(b'"__metadata__"', b"null", b"[" * 200),
]


def tokens(part: bytes) -> list[bytes]:
  """Splits a part into the instructions of its pickles and the bytes between them."""
  cuts = {0, len(part)}
  for start in (match.start() for match in re.finditer(rb"\x80\x02", part)):
    with contextlib.suppress(ValueError):
      places = [place for _, _, place in pickletools.genops(part[start:])]
      cuts |= {start + place for place in (*places, places[-1] + 1)}
  order = sorted(cuts)
  return [part[a:b] for a, b in itertools.pairwise(order)]


@functools.cache
def source(container: str):
  """Returns a file's parts as tokens, a function that joins parts, and more tokens."""
  small = {key: STATE[key] for key in ("fc.weight", "by.column", "counter", "half")}
  if container != "safetensors":
    parts = {key: tokens(part) for key, part in members(small, container).items()}
    return parts, functools.partial(pack, container=container), PIECES
  data = safetensors.numpy.save(small, {"key": "value"})
  size = 8 + struct.unpack("<Q", data[:8])[0]

  def join(parts: dict[str, bytes]) -> bytes:
    return struct.pack("<Q", len(parts["header"])) + b"".join(parts.values())

  header = re.findall(rb'\d+|"[^"]*"|.', data[8:size])
  return {"header": header, "numbers": [data[size:]]}, join, JSON_PIECES


def edit_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
  changed = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 4))):
    at = rng.randrange(len(changed) + 1)
    size = rng.choice((1, 2, 4, 8, 64))
    match rng.randrange(6):
      case 0:
        changed[at : at + 1] = bytes([rng.randrange(256)])
      case 1:
        number = struct.pack("<q", rng.choice(NUMBERS))[:size]
        changed[at : at + len(number)] = number
      case 2:
        del changed[at : at + size]
      case 3:
        changed[at:at] = changed[at : at + size]
      case 4:
        start = rng.randrange(len(other))
        changed[at : at + size] = other[start : start + size]
      case 5 if rng.random() < 0.3:
        del changed[at:]
  return bytes(changed)


def edit_tokens(rng: random.Random, tokens: list[bytes], pieces) -> list[bytes]:
  changed = list(tokens)
  for _ in range(rng.choice((1, 1, 2, 3))):
    at = rng.randrange(len(changed) + 1)
    size = rng.choice((1, 1, 1, 2, 5))
    match rng.randrange(5):
      case 0:
        del changed[at : at + size]
      case 1:
        start = rng.randrange(len(tokens))
        changed[at:at] = tokens[start : start + size]
      case 2:
        changed[at : at + 1] = [rng.choice(pieces)]
      case 3:
        changed[at:at] = rng.choices(pieces, k=size)
      case 4:
        changed[at : at + 2] = changed[at : at + 2][::-1]
  return changed


def mutant(container: str, seed: int) -> bytes:
  rng = random.Random(f"{container} {seed}")
  sources, join, pieces = source(container)
  parts = {key: b"".join(part) for key, part in sources.items()}
  whole = join(parts)
  part = rng.choice(list(parts))
  kind = rng.random()
  if kind < 0.3:
    return edit_bytes(rng, whole, whole)
  if kind < 0.5:
    parts[part] = edit_bytes(rng, parts[part], whole)
  else:
    part = max(sources, key=lambda key: len(sources[key])) if kind < 0.8 else part
    parts[part] = b"".join(edit_tokens(rng, sources[part], pieces))
  return join(parts)


class HangError(BaseException):
  """The tested code does not catch this error."""


@contextlib.contextmanager
def time_limit(seconds: int):
  def stop(*_):
    raise HangError(f"more than {seconds} s")

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def read_and_copy(path: Path) -> None:
  arrays, problems = reader._read(path)
  read_class_names(path, 3)
  for key, array in arrays.items():
    assert array is not None or problems, f"{key} is missing but not reported"
    if array is not None:
      array.copy()  # Crashes if the array reaches beyond the file.


@pytest.mark.parametrize("container", [*CONTAINERS, "safetensors"])
def test_of_10_000_damaged_files_each_is_read_or_refused(container, tmp_path):
  path = tmp_path / ("x.safetensors" if container == "safetensors" else "x.pth")
  path.write_bytes(mutant(container, 0))
  with contextlib.suppress(ValueError):
    read_and_copy(path)  # Creates what is created only once.
  failures, most = {}, 0
  for seed in range(2_500):
    data = mutant(container, seed)
    path.write_bytes(data)
    measured = seed % 5 == 0  # Measuring makes reading several times slower.
    if measured:
      tracemalloc.start()
    try:
      with time_limit(10):
        read_and_copy(path)
    except ValueError:
      pass
    except (Exception, HangError) as error:
      failures[seed] = repr(error)
    if measured:
      extra = tracemalloc.get_traced_memory()[1] - 2 * len(data)
      tracemalloc.stop()
      most = max(most, extra)
      if extra > SPARE:
        failures[seed] = f"{extra} bytes more than twice the file"
  print(f"{container}: at most {most} bytes more than twice the file")
  assert not failures
