"""Checks before training that all processes of a run have the same settings."""

import dataclasses
import json

import jax
from jax.experimental import multihost_utils

from resnet_jax.config import serialization
from resnet_jax.config.fields import flatten
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import of_first_process


def check_same_settings(config: Config) -> None:
  """Compares the settings of all processes; each waits for the others.

  The settings for where the images are and how they are read may differ per host.

  Raises:
    UserError: this process has other settings than process 0. The processes with the
      settings of process 0 wait until this one has ended.
  """
  data = dataclasses.replace(config.data, dir="", num_threads=0, num_workers=0)
  text = serialization.to_json(dataclasses.replace(config, data=data))
  own, first = (
    flatten(serialization.from_json(text)) for text in (text, of_first_process(text))
  )
  for path, value in own.items():
    if value != first[path]:
      raise UserError(
        f"process {jax.process_index()} has config.{path}={value!r} and process 0 has "
        f"{first[path]!r}; start all with the same flags and configs"
      )
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("all have the same settings")


def check_same_arguments(**arguments: object) -> None:
  """Compares arguments of all processes; each waits for the others.

  Args:
    **arguments: name -> value. With other values, a process would take part in other
      collective operations than the rest, and all would wait for ever.

  Raises:
    UserError: an argument differs from the argument of process 0. The processes with
      the arguments of process 0 wait until this one has ended.
  """
  if jax.process_count() == 1:
    return
  own = {name: repr(value) for name, value in arguments.items()}
  first = json.loads(of_first_process(json.dumps(own)))
  for name, value in own.items():
    if value != first[name]:
      raise UserError(
        f"process {jax.process_index()} has {name}={value} and process 0 has "
        f"{name}={first[name]}; give all processes the same"
      )
  multihost_utils.sync_global_devices("all have the same arguments")
