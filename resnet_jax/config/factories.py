"""Own parts by import path: a network, a task, data, an optimiser, an augmentation.

A config that a person writes may name any code. One that is read from a run directory
may come from a stranger, so its code is imported only where the person allows it.
"""

import importlib
from collections.abc import Collection
from typing import Any

from resnet_jax.config.fields import flatten
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError, setting_name

FACTORIES = (
  "model.factory",
  "task",
  "data.factory",
  "augment.image_factory",
  "augment.batch_factory",
  "optim.factory",
)


def import_factory(path: str, setting: str) -> Any:
  """Imports what "package.module:name" names.

  Args:
    path: the import path.
    setting: that has it, such as "model.factory".

  Raises:
    UserError: there is no such module, or nothing of that name in it. An error within
      the module itself is raised as it is.
  """
  module_name, _, name = path.partition(":")
  where = f"{setting_name(setting)}={path!r}"
  try:
    found: Any = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    if not f"{module_name}.".startswith(f"{error.name}."):
      raise  # The module is there; what it imports is not.
    raise UserError(
      f"{where}: there is no module {error.name!r}; install it, or start from the "
      "folder that holds it",
      setting=setting,
      value=path,
    ) from error
  for part in name.split("."):
    if not hasattr(found, part):
      raise UserError(
        f"{where}: {module_name} has no {name!r}", setting=setting, value=path
      )
    found = getattr(found, part)
  return found


def check_trust(
  config: Config, origin: str, trust_code: bool, named: Collection[str] = ()
) -> None:
  """Refuses code that only a run directory names.

  Args:
    config: that was read from the directory.
    origin: the directory, for the message.
    trust_code: whether the user allows it all.
    named: settings that the user gave in this call.

  Raises:
    UserError: the config names code that the user did not name. Code of this package is
      no exception, as its modules hold names of others.
  """
  if trust_code:
    return
  values = flatten(config)
  for setting in FACTORIES:
    path = str(values[setting])
    if path and setting not in named:
      raise UserError(
        f"{origin} names code to run, config.{setting}={path!r}; if you trust it, add "
        "--trust-code (trust_code=True in Python)",
        setting=setting,
        value=path,
      )
