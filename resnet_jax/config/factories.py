"""Own parts by import path: a network, a task, data, an optimiser, an augmentation.

A config that a person writes may name any code. One that is read from a run directory
may come from a stranger, so its code is imported only where the person allows it.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Collection
from typing import Any

from resnet_jax.config.fields import flatten, walk
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError, setting_name

# The settings that name code.
FACTORIES = tuple(
  path for path, field, _ in walk(Config()) if field.metadata.get("is_factory")
)


def call_factory(
  path: str, setting: str, *args: object, returns: tuple[type, ...] = ()
) -> Any:
  """Imports the function that "package.module:name" names, and calls it.

  Args:
    path: the import path.
    setting: the setting that has it, such as "model.factory".
    *args: what the function takes.
    returns: the types that its result may have; () is any function.

  Raises:
    UserError: there is no such module or function in it, or the function takes or
      returns something else. An error within the user's code is raised as it is.
  """
  function = _import(path, setting)
  where = f"{setting_name(setting)}={path!r}"
  given = ", ".join(type(arg).__name__ for arg in args)
  if not callable(function):
    raise UserError(f"{where} must be a function of ({given}), not {function!r:.60}")
  try:
    inspect.signature(function).bind(*args)
  except TypeError as error:
    raise UserError(f"{where} must take ({given}): {error}", setting=setting) from error
  made = function(*args)
  if not (isinstance(made, returns) if returns else callable(made)):
    kinds = " or ".join(kind.__name__ for kind in returns) or "function"
    raise UserError(
      f"{where} must return {kinds}, not {type(made).__name__}", setting=setting
    )
  return made


def part_name(factory: str, name: str) -> str:
  """Returns how to call a part in messages: by its factory, if it has one."""
  return factory.rpartition(":")[2] or name


def _import(path: str, setting: str) -> Any:
  if os.getcwd() not in sys.path and "" not in sys.path:
    # As `python` has it; last, so that no file there takes the place of a package.
    sys.path.append(os.getcwd())
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
  config: Config,
  origin: str,
  trust_code: bool,
  named: Collection[str] = (),
  used: Collection[str] = FACTORIES,
) -> None:
  """Refuses code that only a run directory names.

  Args:
    config: that was read from the directory.
    origin: the directory, for the message.
    trust_code: whether the user allows it all.
    named: settings that the user gave in this call.
    used: settings whose code would run.

  Raises:
    UserError: the config names code that the user did not name. Code of this package is
      no exception, as its modules hold names of others.
  """
  if trust_code:
    return
  values = flatten(config)
  for setting in used:
    path = str(values[setting])
    if path and setting not in named:
      raise UserError(
        f"{origin} names code to run, config.{setting}={path!r}; if you trust it, add "
        "--trust-code (trust_code=True in Python)",
        setting=setting,
        value=path,
      )
