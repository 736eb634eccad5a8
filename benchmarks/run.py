"""Runs all comparisons and writes a table, a JSON file and a picture.

Command: python benchmarks/run.py [--quick] [--torch PYTHON] [--out benchmarks/results].
It writes OUT/<date>-<machine>.json and .png. `--quick` takes about 5 minutes on 2 cores
and leaves out the slow networks.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import jax
from train_step import PEERS

HERE = Path(__file__).parent
QUICK = [
  ("train_step.py", ["--cases", "resnet20:128", "--turns", "4", "--seconds", "2"]),
  ("inference.py", ["--cases", "resnet50:16", "--turns", "4", "--seconds", "2"]),
  ("compile_time.py", ["--depths", "20", "1202", "--unrolled", "0"]),
  ("loop.py", ["--steps", "40"]),
]
_BF16 = ["--dtype", "bfloat16", "--cases", "resnet50:16", "resnet20:128"]
FULL = [
  ("train_step.py", ["--turns", "5"]),
  ("train_step.py", [*_BF16, "--turns", "3"]),
  ("inference.py", ["--turns", "3"]),
  ("loop.py", []),
  ("compile_time.py", []),
  ("memory.py", []),
]


def draw(rows: list[dict], path: Path) -> None:
  """Draws our speed-up over each peer; the other numbers are in the JSON file."""
  from matplotlib.figure import Figure

  rows = [row for row in rows if row["peer_name"] in PEERS and "ratio" in row][::-1]
  ratios = [row["ratio"] for row in rows]
  figure = Figure(figsize=(8, 1 + 0.24 * len(rows)), layout="constrained")
  axes = figure.subplots()
  # Colours that the colour-blind tell apart (Okabe and Ito 2008).
  colors = ["#0072B2" if ratio >= 1 else "#D55E00" for ratio in ratios]
  names = [f"{row['case']} / {row['peer_name']}" for row in rows]
  # A logarithmic axis draws half the speed and twice the speed equally far from 1.
  bars = axes.barh(names, [ratio - 1 for ratio in ratios], left=1, color=colors)
  axes.bar_label(bars, [f" {ratio:.2f} " for ratio in ratios])
  axes.axvline(1, color="black", linewidth=1)
  ticks = [0.5, 0.7, 1, 1.5, 2, 3, 4, 6]
  axes.set_xscale("log")
  axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
  axes.set_xticks([], minor=True)
  axes.set_xlim(min([0.7, *ratios]) / 1.4, max([2, *ratios]) * 1.4)
  axes.set(xlabel="times as fast as the peer", ylim=(-0.7, len(rows) - 0.3))
  figure.savefig(path, dpi=80)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--torch", metavar="PYTHON", default=sys.executable)
  parser.add_argument("--out", type=Path, default=HERE / "results")
  args = parser.parse_args()
  rows: list[dict] = []
  # `turns.py` runs in its own process, because JAX keeps most of a GPU's memory until
  # its process ends.
  describe = [sys.executable, str(HERE / "turns.py")]
  machine = json.loads(subprocess.check_output(describe))
  is_old_cpu = machine["device"] == "cpu" and jax.__version_info__ < (0, 12)
  for script, flags in QUICK if args.quick else FULL:
    if flags[:2] == _BF16[:2] and is_old_cpu:
      print("bfloat16 is left out: on a CPU it needs jax 0.12 or later")
      continue
    if script in ("train_step.py", "inference.py"):
      flags = [*flags, "--torch", args.torch]
    command = [sys.executable, str(HERE / script), "--json", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
      print(line, end="", flush=True)
      rows.append(json.loads(line))
    if process.wait():
      sys.exit(f"error: {' '.join(command)} failed")
  kind = str(machine["device"]).replace(" ", "-").lower()
  args.out.mkdir(parents=True, exist_ok=True)
  name = f"{machine['date']}-{platform.machine()}-{kind}{'-quick' * args.quick}"
  path = args.out / f"{name}.json"
  path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
  draw(rows, path.with_suffix(".png"))
  print(f"{path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
  main()
