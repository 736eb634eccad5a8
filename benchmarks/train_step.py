"""Compares our training step with PyTorch's and a stock Flax ResNet's.

Command: python benchmarks/train_step.py [--cases resnet50:16 resnet20:128]
[--dtype float32] [--torch PYTHON] [--json]. The extra `torch` installs the peers;
PyTorch may have another interpreter. A case is a network and a batch size. A ratio
above 1 means that ours is faster. The best PyTorch is the faster one of eager mode and
`torch.compile`.
"""

import argparse
import sys
from pathlib import Path

from turns import add_arguments, alternate, report

PEERS = ("stock flax", "torch", "torch.compile")
DEFAULT = {
  "train": ["resnet18:16", "resnet50:16", "resnet20:128", "resnet56:128"],
  "infer": ["resnet50:1", "resnet50:16", "resnet20:32", "resnet20:256"],
}


def compare(task: str, args: argparse.Namespace) -> list[dict]:
  """Runs and prints the comparisons; `task` is "train" or "infer"."""
  rows = []
  for case in args.cases or DEFAULT[task]:
    model, batch = case.split(":")
    commands = {}
    for peer in ("ours", *args.peers):
      python = args.torch if peer.startswith("torch") else sys.executable
      file = str(Path(__file__).with_name("cases.py"))
      commands[peer] = [python, file, peer, task, model, batch, args.dtype]
    seconds = alternate(commands, args.turns, args.seconds)
    title = f"{task} {model}, batch {batch}, {args.dtype}"
    rows += report(title, seconds, "ours", args.json)
  return rows


def create_parser(text: str) -> argparse.ArgumentParser:
  """Returns the parser that `train_step.py` and `inference.py` share."""
  parser = argparse.ArgumentParser(description=text)
  parser.add_argument("--cases", nargs="+", metavar="MODEL:BATCH")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  others = (*PEERS, "ours scanned")
  parser.add_argument("--peers", nargs="+", choices=others, default=PEERS)
  add_arguments(parser)
  return parser


if __name__ == "__main__":
  compare("train", create_parser(__doc__ or "").parse_args())
