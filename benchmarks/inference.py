"""Compares our evaluation forward pass with the programs that people deploy.

Command: python benchmarks/inference.py [--cases resnet50:1 resnet50:16] [--dtype
float32 bfloat16 int8] [--peers onnxruntime openvino] [--torch PYTHON] [--json]. The
extra `benchmark` installs the peers; all but Flax may have another interpreter. A case
is a network and a batch size. A ratio above 1 means that ours is faster.

All programs have the same weights and images, and a program whose answers are off has
an error instead of a time, see `engines.py`. "Not here" is what a program or the
processor does not have. `ours in onnxruntime` and `ours in openvino` are the file that
`resnet-jax export` writes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from engines import CASES, DTYPES
from networks import parse_case
from turns import add_arguments, alternate, report

HERE = Path(__file__).parent
RUNTIMES = ("onnxruntime", "openvino")
PEERS = ("stock flax", "torch", "torch.compile", "torch frozen", *RUNTIMES)
_NETWORKS = ("resnet18", "resnet50", "resnet101")
DEFAULT = [f"{name}:{batch}" for name in _NETWORKS for batch in (1, 16, 64)]
DEFAULT += ["resnet20:1", "resnet20:256"]


def prepare(folder: Path, model: str, args: argparse.Namespace) -> None:
  """Writes the network's files to a new folder, in the interpreter of PyTorch.

  Args:
    folder: the folder.
    model: the network.
    args: the flags, which tell which files are needed.
  """
  folder.mkdir()
  count = max(16, *(batch for name, batch in args.cases if name == model))
  formats = []
  if set(RUNTIMES) & set(args.peers):
    formats = ["onnx", *(["int8"] if "int8" in args.dtype else [])]
  command = [args.torch, str(HERE / "networks.py"), str(folder), model, str(count)]
  done = subprocess.run([*command, *formats], capture_output=True, text=True)
  if done.returncode:
    reason = (done.stderr.strip() or "it ended").splitlines()[-1]
    sys.exit(f"error: {args.torch} could not prepare {model}: {reason}")


def main() -> None:
  """Runs and prints the comparisons."""
  parser = argparse.ArgumentParser(description=__doc__)
  add_arguments(parser, DEFAULT, parse_case)
  parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES)
  others = [peer for peer in CASES if peer != "ours"]
  parser.add_argument("--peers", nargs="+", choices=others, default=PEERS)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as parent:
    for model, batch in args.cases:
      folder = Path(parent, model)
      if not folder.exists():
        prepare(folder, model, args)
      for dtype in args.dtype:
        commands = {}
        for peer in ("ours", *args.peers):
          python = args.torch if peer in PEERS[1:] else sys.executable
          command = [python, HERE / "engines.py", peer, folder, model, batch, dtype]
          commands[peer] = list(map(str, command))
        seconds = alternate(commands, args.turns, args.seconds)
        report(f"infer {model}, batch {batch}, {dtype}", seconds, "ours", args.json)


if __name__ == "__main__":
  main()
