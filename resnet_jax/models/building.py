"""Networks as the settings name them, and networks with other settings."""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

from flax import linen as nn

from resnet_jax.config.factories import call_factory
from resnet_jax.config.schema import Config, ModelConfig
from resnet_jax.models.detection import DETECTORS, RetinaNet, create_detector
from resnet_jax.models.groups import BODY, check_frozen, check_multipliers
from resnet_jax.models.old_names import warn_of_old_name
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.segmentation import SEGMENTERS, Segmenter, create_segmenter
from resnet_jax.runtime.compilation import compute_dtype
from resnet_jax.runtime.errors import UserError

# The labels of the data, see `DataConfig.labels` -> the networks for them.
_DENSE = {"mask": SEGMENTERS, "boxes": DETECTORS}


def build_model(config: Config) -> nn.Module:
  """Builds the network that resolved settings describe, such as a saved `config.json`.

  Raises:
    UserError: the architecture is unknown, the network lacks a group of parameters that
      the settings name, or the user's own network is not a Flax module.
  """
  if config.model.factory:
    settings = config.model
    model = call_factory(
      settings.factory, "model.factory", settings, returns=(nn.Module,)
    )
  elif config.data.labels in _DENSE:
    model = _create_dense(config)
  else:
    values = dataclasses.asdict(config.model)
    values.pop("factory")
    model = create_model(**values)
  if groups := getattr(model, "groups", ()):
    check_multipliers(config.optim.learning_rate_multipliers, groups)
  return with_frozen(model, config.freeze)


def _create_dense(config: Config) -> Segmenter | RetinaNet:
  """Builds a segmenter or a detector.

  Raises:
    UserError: the architecture is unknown, or a setting is for other networks.
  """
  model, known = config.model, _DENSE[config.data.labels]
  if model.name not in known:
    raise UserError(
      f"config.model.name={model.name!r} must be {' or '.join(known)} with "
      f"config.data.labels={config.data.labels!r}; config.model.factory names another "
      "network"
    )
  default = ModelConfig()
  for field in ("stem", "shortcut", "zero_init_residual", "stochastic_depth", "scan"):
    if getattr(model, field) != getattr(default, field):
      raise UserError(
        f"config.model.{field}={getattr(model, field)!r} is for classification; leave "
        f"it at {getattr(default, field)!r}"
      )
  create = create_segmenter if config.data.labels == "mask" else create_detector
  dtype = compute_dtype(model.dtype)
  built = create(model.name, model.num_classes, norm=model.norm, dtype=dtype)
  return built.clone(net=built.net.clone(remat=model.remat))


def with_frozen(model: nn.Module, frozen: tuple[str, ...]) -> nn.Module:
  """Returns the network with some groups in evaluation mode during training.

  Raises:
    UserError: the network has no such groups, or no field `frozen`; or "body" is frozen
      and `scan` is on.
  """
  if not frozen:
    return model
  if isinstance(model, Segmenter | RetinaNet):
    check_frozen(frozen, model.groups)
    own = tuple(name for name in frozen if name in model.net.groups)
    return model.clone(net=model.net.clone(frozen=own))
  _check_fields(model, ["frozen"], "freeze", "a network")
  changed = model.clone(frozen=frozen)
  # A network without `groups` is checked later, when its parameters are known.
  if groups := getattr(changed, "groups", ()):
    check_frozen(frozen, groups, has_body=isinstance(changed, ResNet))
  is_uniform = isinstance(changed, ResNet) and changed.pre_activation
  if BODY in frozen and getattr(changed, "scan", False) and not is_uniform:
    raise UserError(
      f"config.freeze={','.join(frozen)} needs config.model.scan=False, as the last "
      "norm is trained and the same norm of the other blocks is not",
      setting="model.scan",
    )
  return changed


def with_norm(model: nn.Module, setting: str, **values: Any) -> nn.Module:
  """Returns the network with new values of its norms' fields.

  Raises:
    UserError: the network has no field `norm_cls`, or its norms lack a field that
      `setting` needs.
  """
  name = "norm_cls"
  if "norm" in _field_names(model) and name not in _field_names(model):
    name = "norm"
    warn_of_old_name(type(model), name)
  _check_fields(model, {name}, setting, "a network")
  norm: Any = getattr(model, name)
  _check_fields(norm(), values, setting, "norms")
  changed: dict[str, Any] = {name: partial(norm, **values)}
  return model.clone(**changed)


def _field_names(module: nn.Module) -> set[str]:
  return {field.name for field in dataclasses.fields(module)}


def _check_fields(
  module: nn.Module, needed: Iterable[str], setting: str, what: str
) -> None:
  if missing := [name for name in needed if name not in _field_names(module)]:
    raise UserError(
      f"config.{setting} needs {what} with the field {', '.join(missing)}, which "
      f"{type(module).__name__} does not have; leave the setting at its default",
      setting=setting,
    )
