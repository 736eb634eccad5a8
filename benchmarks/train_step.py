"""Compares our training step with PyTorch's and a stock Flax ResNet's.

Command: python benchmarks/train_step.py [--cases resnet50:16 resnet20:128]
[--dtype float32] [--torch PYTHON] [--json]. The extra `torch` installs the peers;
PyTorch may have another interpreter. A case is a network and a batch size. A ratio
above 1 means that ours is faster.
"""

import argparse
import sys
from pathlib import Path

from cases import CASES
from networks import parse_case
from turns import add_arguments, alternate, report

PEERS = ("stock flax", "torch", "torch.compile")
DEFAULT = ["resnet18:16", "resnet50:16", "resnet20:128", "resnet56:128"]


def main() -> None:
  """Runs and prints the comparisons."""
  parser = argparse.ArgumentParser(description=__doc__)
  add_arguments(parser, DEFAULT, parse_case)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  others = [peer for peer in CASES if peer != "ours"]
  parser.add_argument("--peers", nargs="+", choices=others, default=PEERS)
  args = parser.parse_args()
  file = str(Path(__file__).with_name("cases.py"))
  for model, batch in args.cases:
    commands = {}
    for peer in ("ours", *args.peers):
      python = args.torch if peer.startswith("torch") else sys.executable
      commands[peer] = [python, file, peer, model, str(batch), args.dtype]
    seconds = alternate(commands, args.turns, args.seconds)
    title = f"train {model}, batch {batch}, {args.dtype}"
    report(title, seconds, "ours", args.json)


if __name__ == "__main__":
  main()
