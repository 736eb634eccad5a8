"""Checks settings, and completes them from the machine, the data and the weights."""

import copy
import dataclasses

import numpy as np
from flax import linen as nn

from resnet_jax import weights
from resnet_jax.config.data_settings import DENSE_LABELS
from resnet_jax.config.preprocessing import Preprocessing, fields_of_weights, fill_in
from resnet_jax.config.schema import Config
from resnet_jax.config.validation import validate
from resnet_jax.data import Dataset, count_classes, known_labels
from resnet_jax.models.building import build_model
from resnet_jax.models.detection import DETECTORS
from resnet_jax.models.registry import create_model, own_norm
from resnet_jax.runtime import compilation
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.transfer import read_preprocessing


def check_settings(config: Config, own_model: bool = False) -> None:
  """Checks settings, including the names that depend on the architecture.

  Args:
    config: the settings.
    own_model: whether the user gives a network, so that `config.model` is not used.

  Raises:
    UserError: a setting is wrong, whatever the data set is.
  """
  validate(config)
  if not config.model.factory and not own_model:
    build_model(with_num_classes(config, 1))


def resolve_model(config: Config) -> tuple[Config, nn.Module]:
  """Checks settings without data; the architecture gives the number of classes.

  Returns:
    The settings with the number of classes and the dtype, and the network.

  Raises:
    UserError: as in `check_settings`.
  """
  check_settings(config)
  number = config.model.num_classes or create_model(config.model.name).num_classes
  config = with_num_classes(with_dtype(config), number)
  return config, build_model(config)


def resolve_weights(
  path: str, config: Config, ema: bool | None = None
) -> tuple[Config, nn.Module, bool]:
  """Completes settings from a file of weights, and builds its network.

  Args:
    path: see `weights.load`.
    config: its `model` is completed, see `weights.complete_model` and `complete_dense`.
    ema: see `weights.load`.

  Returns:
    The settings, with what the network predicts in `data.labels`; the network; and
    whether it needs a new head, see `weights.load`.

  Raises:
    UserError: a setting is wrong, the file is damaged or no network fits it.
    NotFoundError: there is no such file.
  """
  labels = weights.find_labels(path)
  if labels in DENSE_LABELS:
    model, network, new_head = weights.complete_dense(path, labels, config.model, ema)
    data = dataclasses.replace(config.data, labels=labels)
    return dataclasses.replace(config, model=model, data=data), network, new_head
  new_head = weights.needs_new_head(path, config.model.num_classes, ema)
  model = weights.complete_model(path, config.model, ema)
  data = dataclasses.replace(config.data, labels="class" if new_head else labels)
  config, network = resolve_model(dataclasses.replace(config, model=model))
  return dataclasses.replace(config, data=data), network, new_head


def resolve_settings(config: Config, model: nn.Module | None = None) -> Config:
  """Checks settings, and fills in the preprocessing of the weights to start from.

  Args:
    config: the settings. The empty fields of its data (see `fields_of_weights`) take
      the values of the weights in `config.init_from`, or ImageNet's without weights.
    model: the network; None builds the one that `config` names.

  Raises:
    UserError: a setting is wrong, or the weights are damaged.
    NotFoundError: the weights do not exist.
  """
  check_settings(config, own_model=model is not None)
  if not fields_of_weights(config.data):
    return config
  preprocessing = Preprocessing()
  if config.init_from:
    if model is None:
      model = build_model(with_num_classes(config, 1))
    preprocessing = read_preprocessing(config.init_from, model)
  config = dataclasses.replace(config, data=fill_in(config.data, preprocessing))
  validate(config)
  return config


def with_num_classes(config: Config, num_classes: int) -> Config:
  """Returns settings with `num_classes` filled in, if they have none.

  The norm of the architecture is filled in too. A run keeps it, as runs of earlier
  versions do, in which every architecture had batch norm. Detectors keep "": the norm
  of some is none of `NORMS`.
  """
  name = config.model.name
  own = "" if name in DETECTORS else own_norm(name)
  model = dataclasses.replace(
    config.model,
    num_classes=config.model.num_classes or num_classes,
    norm=config.model.norm or own,
  )
  return dataclasses.replace(config, model=model)


def with_label_statistics(config: Config, images: Dataset) -> Config:
  """Returns settings with what the loss needs to know of the training labels.

  This is the number of images of each class, the weights of several classes, or the
  mean and the standard deviation of numbers.

  Raises:
    UserError: it is not known, or a class has no images.
  """
  loss, count = config.loss, images.num_examples
  if config.data.labels == "numbers":
    numbers = known_labels(images)
    if numbers is None:
      raise UserError(
        "the data set does not tell the labels before its images are read; give "
        "config.loss.target_mean and config.loss.target_std"
      )
    mean, std = numbers.mean(0, dtype=np.float64), numbers.std(0, dtype=np.float64)
    if (constant := np.flatnonzero(std == 0)).size:
      raise UserError(
        f"{images.class_names[constant[0]]!r} is {mean[constant[0]]:g} for all "
        "training images: nothing to learn; remove it from the labels"
      )
    loss = dataclasses.replace(
      loss,
      target_mean=loss.target_mean or tuple(mean.tolist()),
      target_std=loss.target_std or tuple(std.tolist()),
    )
    return dataclasses.replace(config, loss=loss)
  counts = count_classes(images)
  empty = config.model.num_classes - sum(count > 0 for count in counts)
  if not counts or empty:
    reason = "the data set does not tell the labels before its images are read"
    if counts:
      reason = f"{empty} of the classes have no training image"
    raise UserError(
      "config.loss.class_weighting=balanced and logit_adjustment need the number of "
      f"training images of each class, but {reason}; give config.loss.class_counts"
    )
  if config.data.labels == "class":
    loss = dataclasses.replace(loss, class_counts=counts)
  else:
    weights = tuple((count - has) / has for has in counts)
    loss = dataclasses.replace(loss, class_weights=weights)
  return dataclasses.replace(config, loss=loss)


def with_eval_size(config: Config, image_shape: tuple[int, int, int]) -> Config:
  """Returns settings with the size of square evaluation images, if none resizes them.

  Photos are later resized to this size.
  """
  (height, width, _), data = image_shape, config.data
  if data.eval_resize or data.eval_crop or height != width:
    return config
  data = dataclasses.replace(data, eval_resize=height, eval_crop=width)
  return dataclasses.replace(config, data=data)


def with_dtype(config: Config) -> Config:
  """Returns a copy of settings with the dtype of this machine."""
  config = copy.deepcopy(config)
  config.model.dtype = str(compilation.compute_dtype(config.model.dtype))
  return config
