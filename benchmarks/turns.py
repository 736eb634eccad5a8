"""Runs cases in turns: each in its own process, while all others are stopped.

Other programs on a shared machine then slow all cases alike, so the medians over the
turns can be compared.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable


def serve(run: Callable[[int], None]) -> None:
  """Calls `run` with the number in each line of stdin; prints the seconds per run."""
  run(1)  # Compiles.
  for line in sys.stdin:
    start, count = time.perf_counter(), int(line)
    run(count)
    print(json.dumps({"s": (time.perf_counter() - start) / count}), flush=True)
  os._exit(0)  # Some libraries would wait for threads.


class Turns:
  """A case in its own process group, which runs only during its turns.

  Attributes:
    turns: the answer of the process to each turn.
    error: the last line of its standard error if it failed, else "".
  """

  def __init__(self, command: list[str]):
    """Starts a process that answers each line of stdin with a line of JSON."""
    self.turns: list[dict[str, float]] = []
    self.error = ""
    self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - used by `take`
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      start_new_session=True,
    )

  def take(self, count: int) -> None:
    """Lets the process run `count` times, then stops it."""
    if self.error:
      return
    os.killpg(self._process.pid, signal.SIGCONT)
    assert self._process.stdin and self._process.stdout
    try:
      self._process.stdin.write(f"{count}\n")
      self._process.stdin.flush()
      self.turns.append(json.loads(self._process.stdout.readline()))
      os.killpg(self._process.pid, signal.SIGSTOP)
    except (BrokenPipeError, json.JSONDecodeError):
      self.end()
      self._errors.seek(0)
      self.error = (self._errors.read().strip() or "it ended").splitlines()[-1]

  def end(self) -> None:
    """Kills the process and its children."""
    if self._process.poll() is None:
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()


def alternate(
  commands: dict[str, list[str]], turns: int, seconds: float
) -> dict[str, float | str]:
  """Returns the median seconds of each case, or its error message.

  Args:
    commands: name -> a command that calls `serve`.
    turns: number of counted turns of each case; a first turn is not counted.
    seconds: minimum length of a turn. A turn has at least three runs, because a process
      that was stopped is slower at first.
  """
  cases: dict[str, Turns] = {}
  try:
    for name, command in commands.items():
      cases[name] = Turns(command)
      cases[name].take(1)  # Starts and compiles while others are stopped.
    for _ in range(turns):
      for case in cases.values():
        first = case.turns[0]["s"] if case.turns else seconds
        case.take(max(3, round(seconds / first)))
  finally:  # Otherwise the stopped processes would never end.
    for case in cases.values():
      case.end()
  return {
    name: case.error or statistics.median(turn["s"] for turn in case.turns[1:])
    for name, case in cases.items()
  }


def count_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def read_processor() -> dict[str, str]:
  """Returns what /proc/cpuinfo says of the last core; nothing where it is missing."""
  if not os.path.exists("/proc/cpuinfo"):
    return {}
  with open("/proc/cpuinfo") as file:
    lines = dict(line.split(":", 1) for line in file if ":" in line)
  return {key.strip(): value.strip() for key, value in lines.items()}


def read_processor_flags() -> set[str]:
  """Returns the processor's extensions, such as "avx512_bf16"; on ARM "bf16"."""
  known = read_processor()
  return set((known.get("flags") or known.get("Features", "")).split())


def describe_machine() -> dict[str, object]:
  """Returns the hardware, versions and date that a result depends on."""
  import jax

  return {
    "device": jax.devices()[0].device_kind,
    "processor": read_processor().get("model name", platform.processor()),
    "cores": count_cores(),
    "jax": jax.__version__,
    "python": platform.python_version(),
    "date": time.strftime("%Y-%m-%d"),
  }


def report(
  case: str, seconds: dict[str, float | str], ours: str, as_json: bool
) -> list[dict]:
  """Prints the times of a case and our speed-up over each peer.

  Args:
    case: what was measured.
    seconds: the result of `alternate`.
    ours: our name in `seconds`.
    as_json: whether to print an object for each peer instead of a table.

  Returns:
    {"case", "ours", "peer", "peer_name", "ratio"} for each peer, with times in seconds;
    {"case", "peer_name", "error"} if ours or the peer failed.
  """
  own, rows = seconds[ours], []
  for name, peer in seconds.items():
    if name == ours:
      continue
    row: dict[str, object] = {"case": case, "peer_name": name}
    if isinstance(own, str) or isinstance(peer, str):
      row["error"] = own if isinstance(own, str) else peer
    else:
      row |= {"ours": own, "peer": peer, "ratio": round(peer / own, 3)}
    rows.append(row)
    if as_json:
      print(json.dumps(row), flush=True)
    elif "error" in row:
      print(f"{case:42} {name:16} failed: {row['error']}", flush=True)
    else:
      print(
        f"{case:42} {name:16} {1e3 * own:9.1f} ms, {1e3 * peer:9.1f} ms  "
        f"x {row['ratio']:.2f}",
        flush=True,
      )
  return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that the comparisons share."""
  parser.add_argument("--torch", metavar="PYTHON", default=sys.executable)
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=5, help="minimum time of a turn")
  parser.add_argument("--json", action="store_true", help="a JSON line per comparison")


if __name__ == "__main__":
  print(json.dumps(describe_machine()))
