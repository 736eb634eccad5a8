"""All comparisons in one go: a table, a JSON file and a picture.

Command: python benchmarks/run.py [--quick] [--torch PYTHON] [--out benchmarks/results].
Writes OUT/<date>-<machine>.json and .png. `--quick` takes about 5 minutes on 2 cores,
and leaves out the slow networks.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

from turns import describe_machine

HERE = Path(__file__).parent
QUICK = [
  ("train_step.py", ["--cases", "resnet20:128", "--turns", "5"]),
  ("inference.py", ["--cases", "resnet50:1", "resnet20:32", "--turns", "5"]),
  ("compile_time.py", ["--depths", "20", "1202", "--unrolled", "0"]),
  ("loop.py", ["--steps", "40"]),
]
FULL = [
  ("train_step.py", []),
  ("train_step.py", ["--dtype", "bfloat16", "--cases", "resnet50:16", "resnet20:128"]),
  ("inference.py", []),
  ("loop.py", []),
  ("compile_time.py", []),
  ("memory.py", []),
]


def draw(rows: list[dict], path: Path) -> None:
  """Draws the ratios as bars."""
  from matplotlib.figure import Figure

  rows = [row for row in rows if "ratio" in row][::-1]
  figure = Figure(figsize=(9, 1 + 0.28 * len(rows)), layout="constrained")
  axes = figure.subplots()
  # Colours that the colour-blind tell apart (Okabe and Ito 2008).
  colors = ["#0072B2" if row["ratio"] >= 1 else "#D55E00" for row in rows]
  names = [f"{row['case']} / {row['peer_name']}" for row in rows]
  axes.barh(names, [row["ratio"] for row in rows], color=colors)
  axes.axvline(1, color="black", linewidth=1)
  axes.set(xlabel="times as fast (or as small) as the peer", xscale="log")
  figure.savefig(path, dpi=120)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--torch", metavar="PYTHON", default=sys.executable)
  parser.add_argument("--out", type=Path, default=HERE / "results")
  args = parser.parse_args()
  rows = []
  for script, flags in QUICK if args.quick else FULL:
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
  machine = describe_machine()
  kind = str(machine["device"]).replace(" ", "-").lower()
  args.out.mkdir(parents=True, exist_ok=True)
  name = f"{machine['date']}-{platform.machine()}-{kind}{'-quick' * args.quick}"
  path = args.out / f"{name}.json"
  path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
  draw(rows, path.with_suffix(".png"))
  print(f"{path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
  main()
