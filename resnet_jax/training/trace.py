"""Reads a trace of JAX's profiler: how long each operation of the training step took.

A trace is an `XSpace` in protobuf's format (xla/tsl/profiler/protobuf/xplane.proto). It
has a plane for each device and each host, a plane has lines, and a line has events.
JAX reads the events, but not the compiled programs (`HloProto`) in the plane
"/host:metadata", which say to which layer an operation belongs.
"""

import dataclasses
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from resnet_jax.training.steps import TRAIN_PROGRAM

# A program's number and the name of an operation in it.
Key = tuple[int, str]
# Name of an operation -> its layer.
Layers = dict[str, str]
_NOTHING = memoryview(b"")


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation of the compiled training step.

  Attributes:
    name: its layer, the direction if it is of the backward pass, and XLA's name, such
      as "stage1/block1/conv1 backward: fusion.3".
    count: number of times that it ran, over all devices.
    seconds: its time over all devices, without the operations within it.
  """

  name: str
  count: int
  seconds: float


def list_operations(trace: bytes) -> list[Operation]:
  """Returns the operations of training, the most expensive first.

  They are those of the program `TRAIN_PROGRAM`, and those whose program is not known.

  Args:
    trace: the content of a file *.xplane.pb.
  """
  programs: dict[int, str] = {}
  layers_of: dict[int, Layers] = {}
  for number, program, module in _programs(memoryview(trace)):
    programs[number] = program
    if program == TRAIN_PROGRAM:
      layers_of[number] = dict(_layers(module))
  seconds: dict[Key, float] = defaultdict(float)
  counts: Counter[Key] = Counter()
  with warnings.catch_warnings():
    # jaxlib 0.12 warns in C++, and aborts the process if warnings are errors.
    warnings.simplefilter("ignore", DeprecationWarning)
    data = jax.profiler.ProfileData.from_serialized_xspace(trace)
    events = [event for line in _device_lines(data) for event in _own_seconds(line)]
  names: dict[int, set[str]] = defaultdict(set)
  for (number, program, name), own in events:
    if (program or programs.get(number, "")) in (TRAIN_PROGRAM, ""):
      seconds[number, name] += own
      counts[number, name] += 1
      names[number].add(name)
  found = {number: _find_layers(number, names[number], layers_of) for number in names}

  def describe(number: int, name: str) -> str:
    layer = found[number].get(name, "")
    return f"{layer}: {name}" if layer else name

  return [
    Operation(describe(*key), counts[key], total)
    for key, total in sorted(seconds.items(), key=lambda item: -item[1])
  ]


def _find_layers(
  number: int, names: set[str], layers_of: Mapping[int, Layers]
) -> Layers:
  """Returns the layers of the program that has the operations of some events.

  On a CPU, a program from JAX's compilation cache has a new number in this process, but
  its events have the number that it had where it was compiled. This may be the number
  of another program here. The trace also has older programs that are still in memory,
  such as those of an earlier run. So the operations decide, then the number, then which
  program is the newest.

  Args:
    number: the number of the program in the events.
    names: the operations of the events.
    layers_of: the programs of the training step, by their numbers in this process.
  """

  def order(candidate: int) -> tuple[int, bool, int]:
    return len(names & layers_of[candidate].keys()), candidate == number, candidate

  return layers_of[max(layers_of, key=order)] if layers_of else {}


def _device_lines(data: Any) -> Iterator[Any]:
  """Yields the lines of a trace on which the operations of devices are."""
  planes = list(data.planes)
  kinds = "/device:TPU", "/device:GPU"
  devices = [plane for plane in planes if plane.name.startswith(kinds)]
  for plane in devices:
    lines = list(plane.lines)
    # A TPU shows the same time on several lines. Those of a GPU are its streams.
    own = [line for line in lines if line.name == "XLA Ops"]
    yield from own or [line for line in lines if line.name.startswith("Stream")]
  if not devices:  # On a CPU, the threads of the host compute.
    for plane in planes:
      if plane.name == "/host:CPU":
        yield from plane.lines


def _own_seconds(line: Any) -> Iterator[tuple[tuple[int, str, str], float]]:
  """Yields (number of the program, its name, operation) and seconds of each event.

  The time of events within an event is not counted for the outer one.
  """
  is_thread = "XLA Ops" not in line.name and not line.name.startswith("Stream")
  events = []
  for event in line.events:
    stats = dict(event.stats)
    if is_thread and "hlo_op" not in stats:  # The host's own work.
      continue
    # A TPU's event has the text of the operation, "%fusion.3 = ...", as its name.
    name = str(stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%"))
    program, _ = _split_number(str(stats.get("hlo_module", "")))
    key = int(stats.get("program_id", -1)), program, name
    events.append((event.start_ns, -event.duration_ns, key))
  events.sort()
  outer: list[list[Any]] = []  # [end, key, own seconds] of the events that enclose.
  for start, negative, key in events:
    while outer and outer[-1][0] <= start:
      _, *done = outer.pop()
      yield done[0], done[1]
    if outer:
      outer[-1][2] += 1e-9 * negative
    outer.append([start - negative, key, -1e-9 * negative])
  for _, key, own in outer:
    yield key, own


def _programs(trace: memoryview) -> Iterator[tuple[int, str, memoryview]]:
  """Yields number, name and `HloModuleProto` of each compiled program of a trace.

  The number is in the name, "jit_train_chunk(33)". The map of the plane counts its own
  entries on a CPU.
  """
  for plane in _all(trace, 1):
    if bytes(_first(plane, 2)) != b"/host:metadata":
      continue
    for entry in _all(plane, 4):
      metadata = _first(entry, 2)
      title = bytes(_first(metadata, 2)).decode()
      name, number = _split_number(title)
      for stat in _all(metadata, 5):
        for proto in _all(stat, 6):
          yield (
            int(_first(entry, 1, 0)) if number < 0 else number,
            name,
            _first(proto, 1),
          )


def _split_number(title: str) -> tuple[str, int]:
  """Splits "jit_train_chunk(33)" into ("jit_train_chunk", 33); -1 is no number."""
  found = re.search(r"\((\d+)\)$", title)
  return (title[: found.start()], int(found[1])) if found else (title, -1)


def _layers(module: memoryview) -> Iterator[tuple[str, str]]:
  """Yields the name of each instruction of an `HloModuleProto`, and its layer."""
  for computation in _all(module, 3):
    for instruction in _all(computation, 2):
      name = bytes(_first(instruction, 1)).decode()
      path = bytes(_first(_first(instruction, 7), 2)).decode()
      yield name, describe_layer(path)


# Parts of a path that are not the name of a layer: transformations and control flow of
# JAX, and methods of modules, such as "ResNet.stages".
_NO_LAYER = re.compile(
  r".*[().].*|while|body|cond|branch_\d+_fun|closed_call|checkpoint|remat.*|scan"
)


def describe_layer(path: str) -> str:
  """Returns the layer of an operation, such as "stage1/block1/conv1 backward".

  Args:
    path: the operation's name in JAX, such as
      "jit(train_chunk)/while/body/transpose(jvp(ResNet))/stage1/block1/conv1/dot".

  Returns:
    "" if the operation is not within a layer.
  """
  *parts, _ = path.split("/")  # The last part is the operation itself.
  layer = "/".join(part for part in parts if not _NO_LAYER.fullmatch(part))
  return layer + " backward" * bool(layer and "transpose(" in path)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
  """Yields number and value of each field of a message in protobuf's format.

  Values are integers, or memory: of strings and messages, or of 4 or 8 bytes.
  """
  place = 0

  def integer() -> int:
    nonlocal place
    value = shift = 0
    while True:
      byte = message[place]
      place += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while place < len(message):
    tag = integer()
    number, kind = tag >> 3, tag & 7
    if kind == 0:
      yield number, integer()
      continue
    length = integer() if kind == 2 else {1: 8, 5: 4}[kind]
    yield number, message[place : place + length]
    place += length


def _all(message: memoryview, number: int) -> Iterator[memoryview]:
  return (value for found, value in _fields(message) if found == number)


def _first(message: memoryview, number: int, default: Any = _NOTHING) -> Any:
  return next((value for found, value in _fields(message) if found == number), default)
