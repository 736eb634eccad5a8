"""Measures, by depth, the time to trace and compile before a network's first step.

Command: python benchmarks/compile_time.py [--depths 20 56 110 1202] [--unrolled 110]
[--json]. The networks are CIFAR ResNets at batch 8 in float32, trained by SGD with
momentum. The columns are times in seconds: to create the initial state (init), to
compile the training step (compile), the sum of both (both), and to run one step
(a step). The time to start JAX is not included.

Each case runs twice, in two new processes. The first one has an empty compilation cache
(cold); the second one has the cache that the first one filled (warm).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

BATCH = 8


def measure(depth: int, scan: bool) -> dict[str, float]:
  """Returns the seconds to create the state, to compile the step and to run it."""
  import jax
  from cases import create_experiment

  jax.block_until_ready(jax.numpy.zeros(3) + 1)
  experiment, feed = create_experiment(f"resnet{depth}", BATCH, scan=scan)
  times = [time.perf_counter()]
  state = experiment.state_init(jax.random.key(0))
  for count in (0, 1):
    jax.block_until_ready(state.params)
    times.append(time.perf_counter())
    state, _ = experiment.train_chunk(state, feed, count)
  jax.block_until_ready(state.params)
  times.append(time.perf_counter())
  parts = zip(("init", "compile", "step"), times, times[1:], strict=False)
  return {name: end - start for name, start, end in parts}


def run(depth: int, layout: str, cache: str) -> dict[str, float]:
  """Runs `measure` in a new process with `cache` as JAX's persistent cache."""
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  command = [sys.executable, __file__, "--one", str(depth), layout]
  return json.loads(subprocess.check_output(command, env=environment, text=True))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--depths", type=int, nargs="+", default=[20, 56, 110, 1202])
  parser.add_argument(
    "--unrolled", type=int, default=110, help="largest depth to measure unrolled too"
  )
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    print(json.dumps(measure(int(args.one[0]), args.one[1] == "scanned")))
    return
  # "cold" or "warm" -> seconds of the first case. All cases are compared with it.
  first: dict[str, float] = {}
  if not args.json:
    print("model       layout    cache   init s  compile s       both   a step s")
  for depth in args.depths:
    for layout in ("scanned", "unrolled"):
      if layout == "unrolled" and depth > args.unrolled:
        continue
      with tempfile.TemporaryDirectory() as cache:
        for kept in ("cold", "warm"):
          parts = run(depth, layout, cache)
          total = parts["init"] + parts["compile"]
          first.setdefault(kept, total)
          row = {
            "case": f"to the first step, resnet{depth} {layout}, {kept} cache",
            "ours": total,
            "peer": first[kept],
            "peer_name": f"resnet{args.depths[0]} scanned",
            "ratio": round(first[kept] / total, 3),
          }
          columns = parts["init"], parts["compile"], total, parts["step"]
          text = " ".join(f"{seconds:10.1f}" for seconds in columns)
          line = f"resnet{depth:<5} {layout:9} {kept:5} {text}"
          print(json.dumps(row) if args.json else line, flush=True)


if __name__ == "__main__":
  main()
