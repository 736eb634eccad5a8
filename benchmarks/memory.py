"""Compares the memory of a training step by depth, with and without rematerialisation.

Command: python benchmarks/memory.py [--depths 20 110 1202] [--batch 128] [--run 1202].
The networks are CIFAR ResNets in float32. The table shows the memory that XLA plans for
the step. `--run` then runs one step at that depth, with remat, and also prints the peak
resident memory of the process.
"""

import argparse
import json
import resource

import jax
from cases import create_experiment


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--depths", type=int, nargs="*", default=[20, 56, 110, 1202])
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--run", type=int, metavar="DEPTH")
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  for depth in args.depths:
    size = {}
    for remat in (False, True):
      experiment, feed = create_experiment(
        f"resnet{depth}", args.batch, scan=True, remat=remat
      )
      step = experiment.train_chunk.lower(experiment.state_init.shapes, feed, 1)
      memory = step.compile().memory_analysis()
      size[remat] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    row = {
      "case": f"memory resnet{depth}, batch {args.batch}",
      "ours": size[True],
      "peer": size[False],
      "peer_name": "without remat",
      "ratio": round(size[False] / size[True], 2),
    }
    text = f"resnet{depth:<5} {size[False] / 1e9:8.2f} GB, {size[True] / 1e9:8.2f} GB"
    print(json.dumps(row) if args.json else f"{text} with remat", flush=True)
  if args.run:
    experiment, feed = create_experiment(
      f"resnet{args.run}", args.batch, scan=True, remat=True
    )
    state = experiment.initial_state()
    jax.block_until_ready(experiment.train_chunk(state, feed, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"resnet{args.run}: a step with remat, {peak / 1e9:.2f} GB resident at most")


if __name__ == "__main__":
  main()
