"""One split in host memory."""

import dataclasses

import numpy as np

from resnet_jax.runtime.errors import setting_name

# Largest split that is kept on the device, in GiB; CIFAR-10 has 0.14.
MAX_GIB = 8


@dataclasses.dataclass(frozen=True)
class Source:
  """One split in host memory.

  Attributes:
    images: [N, H, W, C] uint8.
    labels: [N] int32 in [0, len(class_names)).
    class_names: of every label of the data set.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.images)

  def name(self, index: int) -> str:
    """Returns what an image is called where it has no file."""
    return f"image {index}"


def split_name() -> str:
  """Returns what a message calls the setting that names a split."""
  name = setting_name("data.eval_split")
  is_flag = name != "config.data.eval_split"
  return name if is_flag else "config.data.train_split or eval_split"
