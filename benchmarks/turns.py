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
  """Prints the times of a case and our speed-up over each peer, and over the best.

  Args:
    case: what was measured.
    seconds: the result of `alternate`. Other forms of ours have names that start with
      "ours"; they are not counted as the best peer.
    ours: our name in `seconds`.
    as_json: whether to print an object for each peer instead of a table.

  Returns:
    {"case", "ours", "peer", "peer_name", "ratio"} for each peer, with times in seconds.
    If ours or the peer failed, "error" replaces its time and the ratio. If several
    peers have a time, the last row is for "best peer", which "best" names.
  """
  own, rows = seconds[ours], []
  peers = {name: time for name, time in seconds.items() if name != ours}
  for name, peer in peers.items():
    rows.append({"case": case, "peer_name": name} | _compare(own, peer))
  timed = {
    name: peer
    for name, peer in peers.items()
    if not isinstance(peer, str) and not name.startswith("ours")
  }
  if len(timed) > 1:
    best = min(timed, key=timed.__getitem__)
    row = {"case": case, "peer_name": "best peer", "best": best}
    rows.append(row | _compare(own, timed[best]))
  for row in rows:
    print(json.dumps(row) if as_json else _line(row), flush=True)
  return rows


def _compare(own: float | str, peer: float | str) -> dict[str, object]:
  """Returns the fields of `report`'s row that depend on the times."""
  row: dict[str, object] = {}
  if isinstance(own, str):
    row["error"] = f"ours: {own}"
  else:
    row["ours"] = own
  if isinstance(peer, str):
    row["error"] = peer
  else:
    row["peer"] = peer
  if not isinstance(own, str) and not isinstance(peer, str):
    row["ratio"] = round(peer / own, 3)
  return row


def _line(row: dict) -> str:
  """Returns a row of `report` as text."""
  times = [
    f"{1e3 * row[name]:9.1f} ms" if name in row else f"{'-':>12}"
    for name in ("ours", "peer")
  ]
  result = (
    row["error"] if "error" in row else f"x {row['ratio']:.2f} {row.get('best', '')}"
  )
  return f"{row['case']:42} {row['peer_name']:20} {', '.join(times)}  {result}".rstrip()


def add_arguments(
  parser: argparse.ArgumentParser,
  cases: list[str],
  parse_case: Callable[[str], tuple[str, int]],
) -> None:
  """Adds the flags that the comparisons share."""
  parser.add_argument(
    "--cases",
    nargs="+",
    metavar="MODEL:BATCH",
    type=parse_case,
    default=list(map(parse_case, cases)),
  )
  parser.add_argument("--torch", metavar="PYTHON", default=sys.executable)
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=5, help="minimum time of a turn")
  parser.add_argument("--json", action="store_true", help="a JSON line per comparison")


if __name__ == "__main__":
  print(json.dumps(describe_machine()))
