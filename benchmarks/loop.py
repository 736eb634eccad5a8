"""Measures the fraction of a run's time that is spent outside of the training step.

Command: python benchmarks/loop.py [--cifar10 DIR] [--models resnet20 resnet56]
[--steps-per-call 390] [--json]. The trainer itself trains the digits config and the
CIFAR-10 config, with logs, TensorBoard and the progress bar. The time counts from the
first step to the last, without evaluation. The benchmark waits for each call of the
step, so work that the trainer would do meanwhile counts too: the fraction is an upper
bound. `--cifar10` is a TFDS directory. Without it, 50,000 synthetic images are used.
"""

import argparse
import io
import json
import tempfile
import time

import jax
from rich.console import Console

from resnet_jax import Config, Experiment, train
from resnet_jax.config.files import load_config_file


class Clock:
  """Wraps a jitted `train_chunk` and measures the seconds in its calls and overall."""

  def __init__(self, chunk):
    self.chunk, self.inside, self.steps = chunk, 0.0, 0
    self.first = self.last = 0.0

  def __call__(self, state, feed, count, size):
    start = time.perf_counter()
    result = jax.block_until_ready(self.chunk(state, feed, count, size))
    if count:  # A call of 0 steps only compiles.
      self.last = time.perf_counter()
      self.first = self.first or start
      self.inside += self.last - start
      self.steps += count
    return result


def measure(config: Config) -> Clock:
  """Trains, and returns the clock with the measured times."""
  experiment = Experiment.create(config)
  experiment.train_chunk = clock = Clock(experiment.train_chunk)
  with tempfile.TemporaryDirectory() as folder:
    train(experiment, f"{folder}/run", console=Console(file=io.StringIO()))
  return clock


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--cifar10", metavar="DIR")
  parser.add_argument("--steps", type=int, default=60, help="steps on CIFAR-10")
  parser.add_argument(
    "--models", nargs="+", default=["resnet20"], help="networks for CIFAR-10"
  )
  parser.add_argument(
    "--steps-per-call", type=int, help="for CIFAR-10; 390 trains an epoch per call"
  )
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  configs = {"digits, resnet8": load_config_file("digits")}
  for model in args.models:
    cifar = load_config_file("cifar10_resnet20")
    cifar.model.name = model
    cifar.num_steps = args.steps
    cifar.log_every_steps = args.steps_per_call or 20
    if args.steps_per_call:
      cifar.steps_per_call = args.steps_per_call
    if args.cifar10:
      cifar.data.dir = args.cifar10
    else:
      cifar.data.name, cifar.data.num_examples = "synthetic", 50_000
    configs[f"cifar10, {model}"] = cifar
  for name, config in configs.items():
    config.eval_every_steps = 10**9
    clock = measure(config)
    wall = clock.last - clock.first
    share = 1 - clock.inside / wall
    row = {
      "case": f"loop {name}",
      "ours": wall / clock.steps,
      "peer": clock.inside / clock.steps,
      "peer_name": "step alone",
      "ratio": round(clock.inside / wall, 4),
    }
    text = (
      f"{name}: {1e3 * wall / clock.steps:.2f} ms a step, "
      f"{config.batch_size * clock.steps / wall:.0f} images/s, "
      f"{share:.2%} outside the step"
    )
    print(json.dumps(row) if args.json else text, flush=True)


if __name__ == "__main__":
  main()
