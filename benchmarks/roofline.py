"""Compares the time of a training step, layer by layer, with the device's peak speed.

Command: python benchmarks/roofline.py [--case resnet50:256] [--dtype bfloat16]
[--json]. One step is profiled. The time of each operation is added to the layer that
XLA names as its origin. For a fusion of several layers, XLA names the last one.

The efficiency of a layer is its best possible time divided by its measured time. Two
times are computed: that of its arithmetic at the speed of a large matrix product, and
that of moving its operands and results at the speed of a large copy. The best possible
time is the longer one. Both speeds are measured first. On a CPU, XLA runs some products
in parallel with other operations and reports hardly any time for them.
"""

import argparse
import json
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cases import create_experiment
from networks import side_of

_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) [\w\-]+\(([^)]*)\)")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_BYTES = {
  "f32": 4,
  "s32": 4,
  "u32": 4,
  "bf16": 2,
  "f16": 2,
  "u8": 1,
  "s8": 1,
  "pred": 1,
}


def best_time(function: Callable, *arguments) -> float:
  """Returns the seconds of the fastest of five calls."""
  import jax

  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def measure_peaks(dtype: str) -> tuple[float, float]:
  """Returns operations/s of a large matrix product and bytes/s of a large copy."""
  import jax
  import jax.numpy as jnp

  side = 2048 if jax.default_backend() == "cpu" else 8192
  matrix, array = jnp.ones((side, side), dtype), jnp.ones(2**26, dtype)
  operations = 2 * side**3 / best_time(jax.jit(jnp.matmul), matrix, matrix)
  copy = jax.jit(jnp.negative, donate_argnums=0)

  def copy_back() -> jax.Array:
    nonlocal array
    array = copy(array)
    return array

  return operations, 2 * array.nbytes / best_time(copy_back)


def array_bytes(shape: str) -> int:
  """Returns the size in bytes of the arrays in a type that XLA printed."""
  return sum(
    _BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
    for kind, dims in _ARRAY.findall(shape)
  )


def read_operations(text: str) -> dict[str, tuple[str, int]]:
  """Returns the origin and the bytes of each operation in a compiled module."""
  lines = [
    (match, line) for line in text.splitlines() if (match := _OPERATION.match(line))
  ]
  sizes = {match[1]: array_bytes(match[2]) for match, _ in lines}
  operations = {}
  for match, line in lines:
    origin = re.search(r'op_name="([^"]*)"', line)
    operands = re.findall(r"%([\w.\-]+)", match[3])
    size = sizes[match[1]] + sum(sizes.get(operand, 0) for operand in operands)
    operations[match[1]] = origin[1] if origin else "", size
  return operations


def layer_of(origin: str, layers: dict[str, int]) -> str:
  """Returns an operation's layer, or its block if it is between layers, or "other"."""
  match = re.search(r"(stem|stage\d+|head)/?.*", origin)
  if not match:
    return "other"
  # The path contains methods and inner functions too.
  parts = [part for part in match[0].split("/") if "." not in part and "(" not in part]
  for length in range(len(parts), 0, -1):
    if (name := "/".join(parts[:length])) in layers:
      return name
  return "/".join(parts[:2]) if parts[0].startswith("stage") else parts[0]


def group_of(layer: str) -> str:
  """Returns a layer's row in the table; the blocks of a stage share their rows."""
  return re.sub(r"/block\d+", "", layer)


def profile(run: Callable[[], None]) -> dict[str, float]:
  """Returns the seconds of each operation in a run."""
  import jax

  seconds: Counter[str] = Counter()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    file = next(Path(folder).rglob("*.xplane.pb"))
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      for line in plane.lines:
        for event in line.events:
          operation = dict(event.stats).get("hlo_op")
          if operation:
            seconds[str(operation)] += event.duration_ns / 1e9
  return dict(seconds)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--case", default="resnet50:16", metavar="MODEL:BATCH")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  name, batch = args.case.split(":")
  experiment, feed = create_experiment(name, int(batch), args.dtype)
  import jax

  from resnet_jax.models.summary import list_layers

  state, side = experiment.initial_state(), side_of(name)
  layers = {
    layer.name: layer.multiply_adds * int(batch)
    for layer in list_layers(experiment.model, (side, side, 3))
  }
  product, copy = measure_peaks(args.dtype)
  compiled = experiment.train_chunk.lower(state, feed, 1).compile()
  operations = read_operations(compiled.as_text())

  def run() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(compiled(state, feed, 1))

  run()
  seconds = profile(run)
  times: Counter[tuple[str, bool]] = Counter()
  sizes: Counter[tuple[str, bool]] = Counter()
  for operation, duration in seconds.items():
    origin, size = operations.get(operation, ("", 0))
    if "while" in operation:  # A loop contains other operations.
      continue
    row = group_of(layer_of(origin, layers)), "transpose(" in origin
    times[row] += duration
    sizes[row] += size
  work: Counter[str] = Counter()
  for layer, multiply_adds in layers.items():
    work[group_of(layer)] += 2 * multiply_adds
  total = sum(times.values())
  if not args.json:
    print(f"{jax.devices()[0].device_kind}, {args.case}, {args.dtype}")
    print(f"a large product {product / 1e12:.3g} TFLOP/s, a copy {copy / 1e9:.3g} GB/s")
    print("layers                       direction     ms  share  TFLOP/s efficiency")
  for (group, backward), duration in times.most_common():
    flops = work[group] * (2 if backward else 1)
    best = max(flops / product, sizes[group, backward] / copy)
    direction = "backward" if backward else "forward"
    row = {
      "case": f"roofline {args.case} {args.dtype}, {group} {direction}",
      "ours": duration,
      "peer": best,
      "peer_name": "at best",
      "ratio": round(best / duration, 3),
    }
    line = (
      f"{group:28} {direction:9} {1e3 * duration:8.2f} {duration / total:5.1%} "
      f"{flops / duration / 1e12:9.3g} {best / duration:10.0%}"
    )
    if args.json:
      print(json.dumps(row), flush=True)
    elif duration > total / 1000:
      print(line, flush=True)


if __name__ == "__main__":
  main()
