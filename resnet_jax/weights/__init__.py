"""Trained weights in and out: files of PyTorch and of this package.

variables = weights.load("resnet50-11ad3fa6.pth", create_model("resnet50"))
"""

from resnet_jax.weights.belongings import (
  all_class_names,
  known_class_names,
  read_class_names,
  read_preprocessing,
)
from resnet_jax.weights.load_save import TORCH_SUFFIXES, find, is_run, load, save

__all__ = [
  "TORCH_SUFFIXES",
  "all_class_names",
  "find",
  "is_run",
  "known_class_names",
  "load",
  "read_class_names",
  "read_preprocessing",
  "save",
]
