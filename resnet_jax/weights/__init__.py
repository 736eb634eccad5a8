"""Trained weights in and out: files of PyTorch and of this package.

variables = weights.load("resnet50-11ad3fa6.pth", create_model("resnet50"))
"""

from resnet_jax.weights.load_save import load, save
from resnet_jax.weights.location import TORCH_SUFFIXES, find, is_run
from resnet_jax.weights.metadata import (
  all_class_names,
  known_class_names,
  read_class_names,
  read_preprocessing,
)

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
