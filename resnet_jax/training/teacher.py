"""Loads the teacher that `config.distill` names, and checks that it fits the data."""

import dataclasses
from collections.abc import Sequence

import jax

from resnet_jax import weights
from resnet_jax.config.preprocessing import Preprocessing, preprocessing_of
from resnet_jax.config.schema import Config, ModelConfig
from resnet_jax.data import Dataset
from resnet_jax.models.building import build_model
from resnet_jax.models.folding import fold_batch_norm, folded_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables, image_channels
from resnet_jax.runs import run_dir
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.checksums import digest_arrays
from resnet_jax.runs.facts import read_facts
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.terminal import warn
from resnet_jax.training.class_pairing import order_classes
from resnet_jax.training.distillation import Distillation
from resnet_jax.training.tasks import Classification, Task
from resnet_jax.training.transfer import find_weights

_SETTING = "config.distill.teacher"


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A teacher that fits the data.

  Attributes:
    name: its architecture.
    num_parameters: number of its parameters.
    digest: digest of its variables.
    distillation: what the compiled step uses; the arrays are of the host.
  """

  name: str
  num_parameters: int
  digest: str
  distillation: Distillation


@dataclasses.dataclass(frozen=True)
class _Weights:
  """A network with weights, as `Classifier` without what only a prediction needs."""

  name: str
  model: ResNet
  variables: Variables
  preprocessing: Preprocessing
  class_names: tuple[str, ...]


def create_teacher(config: Config, task: Task, data: Dataset) -> Teacher | None:
  """Loads the teacher of an experiment; None if it has none.

  Args:
    config: the settings, with the number of classes and the dtype.
    task: the task of the student.
    data: the training images.

  Raises:
    UserError: the teacher has other classes or another number of channels than the
      data; it is a custom network; or the task is not a `Classification`.
    NotFoundError: the run, checkpoint or file does not exist.
    OSError: the checkpoint is damaged.
  """
  settings = config.distill
  if not settings.teacher:
    return None
  where = f"{_SETTING}={settings.teacher!r}"
  if not isinstance(task, Classification):
    raise UserError(
      f"{where} needs a classification, not the task {type(task).__name__}; set "
      f"{_SETTING} to ''"
    )
  found = _load(settings.teacher, settings.model, config.model.dtype)
  if (channels := image_channels(found.variables)) != data.image_shape[-1]:
    raise UserError(
      f"{where} is for images of {channels} channel{'s' * (channels > 1)}, and the "
      f"images have {data.image_shape[-1]}; name a teacher for such images"
    )
  wanted = found.preprocessing
  if {len(wanted.mean), len(wanted.std)} - {1, channels}:
    raise UserError(
      f"{where} is for images of {channels} channel{'s' * (channels > 1)}, but its "
      f"preprocessing has mean={wanted.mean} and std={wanted.std}"
    )
  order = _class_order(found, task.num_classes, data.class_names, where)
  # Folded on one device of each process; `BoundChunk` copies the result to all devices.
  fold = jax.jit(lambda variables: fold_batch_norm(found.model, variables)[1])
  return Teacher(
    name=found.name,
    num_parameters=sum(x.size for x in jax.tree.leaves(found.variables["params"])),
    digest=digest_arrays(found.variables),
    distillation=Distillation(
      variables=jax.device_get(fold(found.variables)),
      apply=folded_model(found.model).apply,
      given=preprocessing_of(config.data),
      wanted=wanted,
      class_order=order,
      temperature=float(settings.temperature),
      weight=float(settings.weight),
    ),
  )


def _load(source: str, architecture: str, dtype: str) -> _Weights:
  """Reads a run or a file of weights.

  Args:
    source: as `config.distill.teacher`.
    architecture: as `config.distill.model`.
    dtype: dtype of the computation.
  """
  path, saved = find_weights(source, _SETTING)
  where = f"{_SETTING}={source!r}"
  if saved is None:
    model = weights.complete_model(
      path,
      ModelConfig(name=architecture, dtype=dtype),
      advice="config.distill.model, such as --config.distill.model=resnet50",
    )
    if not model.num_classes:
      raise UserError(f"{where} has no head, which a teacher needs")
    network = _build(model)
    variables = weights.load(path, network)
    preprocessing = weights.read_preprocessing(path, network)
    names = weights.known_class_names(path, model.num_classes)
    return _Weights(model.name, network, variables, preprocessing, names)
  if architecture:
    raise UserError(
      f"{where} is a run, which names its own architecture; set "
      f"config.distill.model={architecture!r} to ''"
    )
  workdir, which = run_dir.split_checkpoint(path)
  if saved.model.factory or "model.factory" in read_facts(workdir).own_parts:
    raise UserError(
      f"{where} is a run of a custom network; a teacher must be a network of "
      "`resnet-jax models`"
    )
  with CheckpointStore(workdir) as store:
    _, variables = store.restore_model(which or "latest")
  model = dataclasses.replace(saved.model, dtype=dtype)
  return _Weights(
    model.name,
    _build(model),
    variables,
    preprocessing_of(saved.data),
    run_dir.load_class_names(workdir),
  )


def _build(model: ModelConfig) -> ResNet:
  network = build_model(Config(model=model))
  assert isinstance(network, ResNet)
  return network


def _class_order(
  teacher: _Weights, num_classes: int, class_names: Sequence[str], where: str
) -> tuple[int, ...]:
  """Returns the teacher's class for each of the student's classes.

  Args:
    teacher: the teacher.
    num_classes: the student's number of classes.
    class_names: names of the classes of the images; () if they are not known.
    where: the teacher's setting and value, for messages.
  """
  if (number := teacher.model.num_classes) != num_classes:
    raise UserError(
      f"{where} has {number} classes, and the network to train has {num_classes}; "
      "name a teacher of the same classes"
    )
  in_order = (*range(num_classes),)
  if not class_names:
    return in_order
  if not teacher.class_names:
    warn(
      f"{where} does not name its {number} classes; they are assumed to be the classes "
      f"of the images in the same order, beginning with {class_names[0]!r}"
    )
    return in_order
  ours, theirs = (
    weights.all_class_names(names, num_classes)
    for names in (class_names, teacher.class_names)
  )
  order = order_classes(ours, theirs)
  if order is None:
    other = next((name for name in ours if name not in theirs), ours[0])
    raise UserError(
      f"{where} has other classes than the images: they have {other!r}, and its "
      f"classes are such as {theirs[0]!r}; name a teacher of the same classes"
    )
  return order
