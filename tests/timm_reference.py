"""Small networks of timm with weights that follow from the names of their parameters.

`python tests/timm_reference.py` writes `timm_reference.json`, with which `test_timm.py`
compares without timm. It needs timm 1.0 and PyTorch.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_suffix(".json")
IMAGE_SHAPE = (2, 64, 96, 3)
NUM_CLASSES = 5
# One row per part that timm's networks have: name and blocks of each stage.
SMALL = {
  "resnet50s": (1, 2, 1, 1),
  "resnet50_gn": (1, 2, 1, 1),
  "seresnextaa101d_32x8d": (1, 2, 1, 1),
  "seresnet18": (1, 1, 2, 1),
  "ecaresnet26t": (1, 2, 1, 1),
  "resnetblur18": (1, 2, 1, 1),
  "resnetrs50": (1, 1, 2, 1),
  "senet154": (1, 1, 2, 1),
  "resnetv2_50x1_bit": (1, 2, 1, 1),
  "resnetv2_50t": (1, 2, 1, 1),
  "resnetv2_50d_evos": (1, 2, 1, 1),
  "resnetv2_50d_frn": (1, 2, 1, 1),
}
FEATURES = 32  # Of the first stage's blocks.


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
  """Returns a text that stands for the names and shapes of parameters."""
  lines = sorted(f"{name} {tuple(shape)}\n" for name, shape in shapes.items())
  return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def value_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the array for a name and a shape of PyTorch.

  The last scale of a block is small, so that no activation grows with the depth.
  """
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if len(shape) > 1:
    return rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype("float32")
  if name.endswith(("weight", "running_var", ".v")):
    scale = 0.2 if name.endswith(("bn2.weight", "bn3.weight")) else 1
    return (scale * rng.uniform(0.5, 1.5, shape)).astype("float32")
  return rng.normal(0, 0.1, shape).astype("float32")


def images() -> np.ndarray:
  """Returns images as [B, H, W, C]."""
  return np.random.default_rng(0).normal(size=IMAGE_SHAPE).astype("float32")


def names_of_all() -> list[str]:
  """Returns the names of timm's residual networks."""
  import timm
  from timm.models import _registry

  files = _registry._model_to_module
  return [name for name in timm.list_models() if files[name] in ("resnet", "resnetv2")]


def shapes_of(network) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each parameter and statistic by its name."""
  return {
    name: tuple(tensor.shape)
    for name, tensor in network.state_dict().items()
    if not name.endswith("num_batches_tracked")
  }


def logits_of(name: str, stage_sizes: tuple[int, ...]) -> np.ndarray:
  """Returns what timm's network computes."""
  import timm
  import torch
  from timm.models import resnetv2

  # The functions of BiT's networks do not take other sizes.
  is_bit = name.endswith("_bit")
  create = resnetv2._create_resnetv2_bit if is_bit else timm.create_model
  outer = 4 if name.startswith("resnetv2") else 1
  channels = tuple(outer * FEATURES * 2**i for i in range(len(stage_sizes)))
  network = create(
    name, layers=stage_sizes, channels=channels, num_classes=NUM_CLASSES
  ).eval()
  with torch.no_grad():
    for key, tensor in network.state_dict().items():
      if tensor.is_floating_point():
        tensor.copy_(torch.from_numpy(value_of(key, tuple(tensor.shape))))
    return network(torch.from_numpy(images().transpose(0, 3, 1, 2))).numpy()


def main() -> None:
  import timm
  import torch

  shapes = {}
  for name in names_of_all():
    with torch.device("meta"):
      shapes[name] = digest(shapes_of(timm.create_model(name)))
  logits = {name: logits_of(name, sizes).tolist() for name, sizes in SMALL.items()}
  found = {"timm": timm.__version__, "shapes": shapes, "logits": logits}
  PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
