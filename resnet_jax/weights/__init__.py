"""Loads and saves trained weights, in files of PyTorch and of this package.

variables = weights.load("resnet50-11ad3fa6.pth", create_model("resnet50"))
"""

from resnet_jax.models.variables import with_channels
from resnet_jax.weights.fitting import complete_model, needs_new_head
from resnet_jax.weights.folders import FORMS, save_folder
from resnet_jax.weights.load_save import is_dense, last_layers, load, save
from resnet_jax.weights.location import (
  FOREIGN_SUFFIXES,
  check_exists,
  find,
  is_run,
  names,
)
from resnet_jax.weights.metadata import (
  all_class_names,
  known_class_names,
  read_class_names,
  read_labels,
  read_preprocessing,
  read_training,
)

__all__ = [
  "FOREIGN_SUFFIXES",
  "FORMS",
  "all_class_names",
  "check_exists",
  "complete_model",
  "find",
  "is_dense",
  "is_run",
  "known_class_names",
  "last_layers",
  "load",
  "names",
  "needs_new_head",
  "read_class_names",
  "read_labels",
  "read_preprocessing",
  "read_training",
  "save",
  "save_folder",
  "with_channels",
]
