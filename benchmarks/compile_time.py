"""How long a network takes to its first update: tracing and compiling, over depth.

Command: python benchmarks/compile_time.py [--depths 20 56 110 1202] [--unrolled 110]

One line a case: CIFAR ResNet at batch 8, float32, SGD with momentum; initialisation
("init") and one training step in the loop ("step") are compiled anew each time.
"""

import argparse
import time

import jax
from memory import prepare

BATCH = 8


def measure(depth: int, scan: bool) -> tuple[float, float, float]:
  """Returns seconds to the initial state, to the compiled step, and of a step."""
  start = time.monotonic()
  init, chunk, feed = prepare(depth, BATCH, scan=scan)
  state = init(jax.random.key(0))
  jax.block_until_ready(state.params)
  initialised = time.monotonic()
  state, _ = chunk(state, feed, 0)
  jax.block_until_ready(state.params)
  compiled = time.monotonic()
  jax.block_until_ready(chunk(state, feed, 1))
  return initialised - start, compiled - initialised, time.monotonic() - compiled


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--depths", type=int, nargs="+", default=[20, 56, 110, 1202])
  parser.add_argument("--unrolled", type=int, default=110, help="up to this depth")
  args = parser.parse_args()
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
  print("model       layout     init s   compile s   first step s")
  for depth in args.depths:
    for scan in (True, False):
      if scan or depth <= args.unrolled:
        layout = "scanned" if scan else "unrolled"
        init, step, run = measure(depth, scan)
        print(f"resnet{depth:<5} {layout:8} {init:8.1f} {step:11.1f} {run:14.2f}")


if __name__ == "__main__":
  main()
