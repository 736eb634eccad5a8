"""Facts about a run that are not settings, stored in `run.json`.

Runs of earlier versions have no such file; the defaults are correct for them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from resnet_jax.config.validation import has_type
from resnet_jax.data import ImageCount
from resnet_jax.runtime.buckets import storage_path
from resnet_jax.runtime.errors import UserError

# Setting that names a part -> argument of `Experiment.create` that takes an object.
_ARGUMENTS = {
  "model.factory": "model",
  "task": "task",
  "data.factory": "train_data",
  "optim.factory": "optimizer",
}


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """Facts about the training of a run that are not in its settings.

  Attributes:
    kernels: "xla" or "native"; "" if not known.
    best_metric: the metric that chooses the best checkpoint.
    image_shape: (H, W, C) of the evaluation images; () if not known.
    own_parts: names of the parts that were given as Python objects, each written as
      the setting that it replaces, such as "model.factory".
    num_train_images: number of training images; 0 if not known.
    train_digest: digest of the list of training images; "" if they have none.
    has_digests: whether all checkpoints of the run have digests of their files.
    teacher_digest: digest of the teacher's weights; "" if the run has no teacher.
  """

  kernels: str = ""
  best_metric: str = "top1"
  image_shape: tuple[int, ...] = ()
  own_parts: tuple[str, ...] = ()
  num_train_images: int = 0
  train_digest: str = ""
  has_digests: bool = False
  teacher_digest: str = ""

  @property
  def images(self) -> ImageCount:
    """Number and digest of the training images."""
    return self.num_train_images, self.train_digest


def read_facts(workdir: str | Path) -> RunFacts:
  """Returns the facts in `run.json` of the run in `workdir`, or the defaults.

  Raises:
    UserError: the file is damaged.
  """
  path = storage_path(workdir) / "run.json"
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
  """Returns the arguments of `Experiment.create`, such as "model=..., task=..."."""
  return ", ".join(f"{_ARGUMENTS[part]}=..." for part in own_parts)
