"""The memory of a training step over depth, with and without rematerialisation.

Command: python benchmarks/memory.py [--depths 20 110 1202] [--batch 128] [--run 1202].
CIFAR nets in float32. The table is what XLA plans for the step; `--run` then takes one
step of that depth, with remat, and prints the process's largest resident memory too.
"""

import argparse
import json
import resource

import jax
import jax.numpy as jnp
import optax

from resnet_jax import create_model
from resnet_jax.data.augment import preprocess
from resnet_jax.sharding import create_mesh, replicated
from resnet_jax.steps import compile_train_chunk
from resnet_jax.train_state import StateInit


def prepare(depth: int, batch: int, **options: bool):
  """Returns what makes the state, the chunk, and its feed; `options` of the model."""
  model = create_model(f"resnet{depth}", **options)
  sharding = replicated(create_mesh(jax.devices()[:1]))
  init = StateInit(model, optax.sgd(0.1, 0.9), (32, 32, 3), sharding)
  chunk = compile_train_chunk(
    preprocess=lambda x, key: preprocess(x, key, mean=(0.5,), std=(0.25,)),
    take_batch=lambda feed, step: feed,
    num_classes=10,
    sharding=sharding,
  )
  feed = {
    "image": jnp.zeros((batch, 32, 32, 3), jnp.uint8),
    "label": jnp.zeros(batch, jnp.int32),
    "mask": jnp.ones(batch, bool),
  }
  return init, chunk, feed


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
      init, chunk, feed = prepare(depth, args.batch, scan=True, remat=remat)
      memory = chunk.lower(init.shapes, feed, 1).compile().memory_analysis()
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
    init, chunk, feed = prepare(args.run, args.batch, scan=True, remat=True)
    state = init(jax.random.key(0))
    jax.block_until_ready(chunk(state, feed, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"resnet{args.run}: a step with remat, {peak / 1e9:.2f} GB resident at most")


if __name__ == "__main__":
  main()
