"""A training step inside `train_chunk`'s loop against one called alone.

Command: python benchmarks/loop_step.py [--model resnet20] [--rounds 5]. Synthetic
32x32 images. Alternates both, and prints medians and one JSON line; a ratio above 1
means that the loop is the faster. With a gradient that is not in canonical form
(`resnet_jax/models/conv.py`) the loop would be about 20 times slower on a CPU.
"""

import argparse
import json
import statistics
import time
from functools import partial

import jax
import optax

from resnet_jax import backend, steps
from resnet_jax.data.augment import preprocess
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.sources import load_synthetic
from resnet_jax.models.zoo import create_model
from resnet_jax.sharding import create_mesh, replicated
from resnet_jax.train_state import StateInit


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="resnet20")
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--steps", type=int, default=3, help="in one round")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  mesh = create_mesh(jax.devices()[:1])
  source = load_synthetic("train", 32, 4 * args.batch)
  dataset = ResidentDataset(source, args.batch, mesh)
  ((feed, _),) = dataset.eval_chunks()
  model = create_model(args.model, 10)
  tx, sharding = optax.sgd(0.1, 0.9), replicated(mesh)
  state = StateInit(model, tx, (32, 32, 3), sharding)(jax.random.key(0))
  prepare = partial(preprocess, padding=4, flip=True, mean=(0.5,), std=(0.25,))
  train_chunk = steps.compile_train_chunk(
    preprocess=prepare,
    take_batch=dataset.take_batch,
    num_classes=10,
    label_smoothing=0.0,
    sharding=sharding,
  )

  def take_and_step(state, feed):
    batch = dataset.take_batch(feed, state.step)
    return steps.train_step(state, batch, preprocess=prepare)

  alone = backend.jit(take_and_step, donate_argnums=0, out_shardings=sharding)

  def run_loop(state):
    return train_chunk(state, feed, args.steps)[0]

  def run_alone(state):
    for _ in range(args.steps):
      state, _ = alone(state, feed)
    return state

  seconds: dict[str, list[float]] = {"loop": [], "alone": []}
  for _ in range(args.rounds + 1):  # The first one compiles.
    for name, run in (("loop", run_loop), ("alone", run_alone)):
      start = time.perf_counter()
      state = jax.block_until_ready(run(state))
      seconds[name].append((time.perf_counter() - start) / args.steps)
  ours, peer = (1000 * statistics.median(seconds[name][1:]) for name in seconds)
  case = f"{args.model} batch {args.batch} float32"
  print(f"{case}: in the loop {ours:.0f} ms a step, alone {peer:.0f} ms")
  result = {"case": case, "ours": ours, "peer": peer, "peer_name": "step alone"}
  print(json.dumps(result | {"ratio": peer / ours}))


if __name__ == "__main__":
  main()
