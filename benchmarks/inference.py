"""Compares our evaluation forward pass with PyTorch's and a stock Flax ResNet's.

Command: python benchmarks/inference.py [--cases resnet50:1 resnet50:16] [--dtype
float32] [--torch PYTHON] [--json]; see `train_step.py`.
"""

from train_step import compare, create_parser

if __name__ == "__main__":
  compare("infer", create_parser(__doc__ or "").parse_args())
