"""The user's own network, task, data, optimiser or augmentation, by import path.

A config file in Python may name any code. A config in a run directory may come from a
stranger, so its code is imported only if the user allows it.
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

# Settings whose value is an import path, or a tuple that may have some.
FACTORIES = tuple(
  path for path, field, _ in walk(Config()) if field.metadata.get("is_factory")
)


def call_factory(
  path: str, setting: str, *args: object, returns: tuple[type, ...] = ()
) -> Any:
  """Imports the function that "package.module:name" names, and calls it.

  Args:
    path: the import path.
    setting: the setting with this value, such as "model.factory".
    *args: arguments of the function.
    returns: allowed types of the result; () allows any function.

  Raises:
    UserError: the module or the function does not exist, or the function takes other
      arguments or returns another type. Errors within the user's code are raised
      unchanged.
  """
  function = import_path(path, setting)
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
  """Returns the name of a part in messages: its factory's function, or else `name`."""
  return factory.rpartition(":")[2] or name


def import_path(path: str, setting: str) -> Any:
  """Returns what "package.module:name" names.

  Raises:
    UserError: the module or the name does not exist.
  """
  if os.getcwd() not in sys.path and "" not in sys.path:
    # `python` also searches this folder. It is last here, so that no file in it hides a
    # package.
    sys.path.append(os.getcwd())
  module_name, _, name = path.partition(":")
  where = f"{setting_name(setting)}={path!r}"
  try:
    found: Any = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    if not f"{module_name}.".startswith(f"{error.name}."):
      raise  # The module exists; something that it imports does not.
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
  """Refuses code that a run directory names and the user does not.

  Args:
    config: the config of the run directory.
    origin: the directory, for the message.
    trust_code: whether the user allows all of its code.
    named: settings that the user gave in this call.
    used: settings whose code would run.

  Raises:
    UserError: the config names code that the user did not name. Paths into this package
      are refused too: they reach other modules, as "resnet_jax:importlib.reload" does.
  """
  if trust_code:
    return
  values = flatten(config)
  for setting in used:
    value = values[setting]
    for path in value if isinstance(value, tuple) else (str(value),):
      # A name without ":" is a part of this package.
      if ":" in path and setting not in named:
        raise UserError(
          f"{origin} names code to run, config.{setting}={path!r}; if you trust it, "
          "add --trust-code (trust_code=True in Python)",
          setting=setting,
          value=path,
        )
