"""What a run directory tells of its run beside the settings: `run.json`.

Runs of earlier versions have no such file, and the defaults are true of them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from etils import epath

from resnet_jax.config.validation import has_type
from resnet_jax.data import ImageCount
from resnet_jax.runtime.errors import UserError

# The settings that could have named a part -> the argument that gave it.
_ARGUMENTS = {
  "model.factory": "model",
  "task": "task",
  "data.factory": "train_data",
  "optim.factory": "optimizer",
}


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """What a run was trained with, as far as its settings do not tell.

  Attributes:
    kernels: "xla" or "native"; "" if that is not known.
    best_metric: the metric that chooses the best checkpoint.
    image_shape: (H, W, C) of the images for evaluation; () if that is not known.
    own_parts: the settings that could name a part, such as "model.factory", where the
      part was an object in Python and so has no name.
    num_train_images: number of training images; 0 if that is not known.
    train_digest: of the list of training images; "" if they have none.
    has_digests: whether all checkpoints of the run have digests of their files.
  """

  kernels: str = ""
  best_metric: str = "top1"
  image_shape: tuple[int, ...] = ()
  own_parts: tuple[str, ...] = ()
  num_train_images: int = 0
  train_digest: str = ""
  has_digests: bool = False

  @property
  def images(self) -> ImageCount:
    """The training images."""
    return self.num_train_images, self.train_digest


def read_facts(workdir: str | Path) -> RunFacts:
  """Returns what the run in `workdir` has in its `run.json`, or the defaults.

  Raises:
    UserError: the file is damaged.
  """
  path = epath.Path(workdir) / "run.json"
  if not path.exists():
    return RunFacts()
  try:
    values = json.loads(path.read_text())
    made: dict[str, Any] = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in values.items()
    }
    for field in dataclasses.fields(RunFacts):
      value = made.get(field.name, field.default)
      if not has_type(value, field.type):
        raise ValueError(f"{field.name} is {value!r:.100}")
    facts = RunFacts(**made)
    shape = facts.image_shape
    if shape and (len(shape) != 3 or min(shape) < 1):
      raise ValueError(f"image_shape is {shape!r:.100}")
    if unknown := set(facts.own_parts) - set(_ARGUMENTS):
      raise ValueError(f"own_parts has {min(unknown)!r:.100}")
    return facts
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f"{path} is damaged: {error}") from error


def to_json(facts: RunFacts) -> str:
  """Returns the text of `run.json`."""
  return json.dumps(dataclasses.asdict(facts), indent=2) + "\n"


def describe_parts(own_parts: tuple[str, ...]) -> str:
  """Returns how `Experiment.create` was given parts, such as "model=..., task=..."."""
  return ", ".join(f"{_ARGUMENTS[part]}=..." for part in own_parts)
