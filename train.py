"""`python train.py` is `resnet-jax train`."""

import sys

from resnet_jax.__main__ import main

if __name__ == "__main__":
  main(["train", *sys.argv[1:]])
