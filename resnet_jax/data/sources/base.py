"""What the readers of data sets share."""

import re

from resnet_jax.runtime.errors import setting_name

# Largest split that is kept on the device, in GiB; CIFAR-10 has 0.14.
MAX_GIB = 8
# What an evaluation takes where no split is named, the first that is there.
EVAL_SPLITS = ("val", "validation", "valid", "test")


def split_name() -> str:
  """Returns what a message calls the setting that names a split."""
  name = setting_name("data.eval_split")
  is_flag = name != "config.data.eval_split"
  return name if is_flag else "config.data.train_split or eval_split"


def is_number(name: str) -> bool:
  """Whether a class is called by a number, which need not be whole."""
  return re.fullmatch(r"[+-]?\d+([.,]\d+)?", name) is not None


def plain_number(text: str) -> str:
  """Returns a whole number without leading zeros, and any other text as it is."""
  return (text.lstrip("0") or "0") if text.isdecimal() else text
