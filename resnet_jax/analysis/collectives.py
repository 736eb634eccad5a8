"""Counts the collectives of a compiled program, from XLA's text form.

The text contains the body of a loop only once. The collectives in it are counted once
per iteration if XLA knows the number of iterations, else once.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict

_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(
  r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
  r"(-start)?\("
)
_CALLED = re.compile(
  r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
# XLA's notations for groups: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'b'} and,
# for a part of an axis, mesh['a'=4] {'a':(2)2}.
_GROUP = re.compile(
  r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] *\{([^}]*)\})"
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of communication between devices.

  Attributes:
    kind: "all-reduce", "all-gather" and so on.
    group: number of devices that communicate.
    count: number of calls in one run of the program.
    bytes: total size of the results on one device.
  """

  kind: str
  group: int
  count: int
  bytes: int

  @property
  def sent_bytes(self) -> float:
    """The fewest bytes that each device can send; a ring algorithm reaches this."""
    n = self.group
    passes = {
      "all-reduce": 2 * (n - 1) / n,  # The result is as large as the operand.
      "all-gather": (n - 1) / n,  # The result is the whole array.
      "reduce-scatter": n - 1,  # The result is one part of the array.
      "all-to-all": (n - 1) / n,
      "collective-permute": 1,
    }
    return passes[self.kind] * self.bytes


def count_collectives(text: str, num_devices: int) -> list[Collective]:
  """Adds up the collectives of a program by kind and number of devices.

  Args:
    text: text of a compiled module.
    num_devices: number of devices in a group if the text does not give it.
  """
  lines: dict[str, list[str]] = defaultdict(list)
  entry = current = ""
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      current = match[2]
      entry = current if match[1] else entry
    else:
      lines[current].append(line)

  counts: Counter[tuple[str, int]] = Counter()
  sizes: Counter[tuple[str, int]] = Counter()
  channels: set[str] = set()

  def walk(computation: str, times: int) -> None:
    for line in lines[computation]:
      channel = _CHANNEL.search(line)
      # On TPUs, the text repeats an overlapped collective once for each of its pieces.
      seen = channel is not None and channel[1] in channels
      if (match := _COLLECTIVE.search(line)) and not seen:
        channels.update([channel[1]] if channel else [])
        key = match[2], _group_size(line, num_devices)
        counts[key] += times
        sizes[key] += times * _result_bytes(match)
      trips = _TRIPS.search(line)
      called = _CALLED.findall(line)
      for branches in _BRANCHES.findall(line):
        called += re.findall(r"[\w.\-]+", branches)
      for name in called:
        walk(name, times * (int(trips[1]) if trips else 1))

  walk(entry, 1)
  return [
    Collective(kind, group, counts[kind, group], sizes[kind, group])
    for kind, group in sorted(counts)
    if group > 1
  ]


def _group_size(line: str, num_devices: int) -> int:
  match = _GROUP.search(line)
  if not match or match[1] == "":
    return num_devices
  if match[3]:
    sizes = dict(axis.split("=") for axis in match[3].split(","))
    # A part of an axis is written 'a':(m)size, m being the size of the parts before.
    axes = [axis.rpartition(")")[2] for axis in match[4].split(",")]
    return math.prod(int(sizes.get(axis, axis)) for axis in axes)
  return int(match[2]) if match[2] else len(match[1].split(","))


def _result_bytes(match: re.Match[str]) -> int:
  arrays = _ARRAY.findall(match[1])
  if match[3] and match[2] != "all-reduce":  # A tuple of operands and results.
    arrays = [array for array in arrays if array != ("u32", "")]
    arrays = arrays[len(arrays) // 2 :]
  return sum(_bytes(dtype, shape) for dtype, shape in arrays)


def _bytes(dtype: str, shape: str) -> int:
  bits = re.match(r"[a-z]+(\d+)", dtype)  # "pred" has no number; it takes a byte.
  size = int(bits[1]) // 8 if bits else 1
  return size * math.prod(int(length) for length in shape.split(",") if length)
