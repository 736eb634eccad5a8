"""`--config=NAME` and `--config.a.b=value`: the flags that make a `Config`."""

import os
from collections.abc import Mapping, Sequence

from resnet_jax.config import factories, fields
from resnet_jax.config.data_settings import KINDS_OF_FILES
from resnet_jax.config.files import list_configs, load_config_file
from resnet_jax.config.schema import Config
from resnet_jax.config.values import parse_value
from resnet_jax.runtime.errors import UserError

# The value of `data.labels` -> the default config for files with such labels.
_OF_LABELS: dict[object, str] = {
  "mask": "voc_deeplabv3_resnet50",
  "boxes": "coco_retinanet_resnet50",
}
_TYPES = {path: field.type for path, field, _ in fields.walk(Config())}


def parse_settings(args: Sequence[str]) -> dict[str, object]:
  """Returns {path: value} for flags `--config.PATH=VALUE`.

  A flag without a value sets a bool to true, `--noconfig.PATH` sets it to false.

  Raises:
    UserError: a word is no such flag, a setting is unknown, or a value has a wrong
      type.
  """
  values: dict[str, object] = {}
  words = list(args)
  while words:
    word = words.pop(0)
    flag, has_value, text = word.partition("=")
    name = flag.lstrip("-")
    if not flag.startswith("-"):
      is_config = word.partition(":")[0] in list_configs() or os.path.isfile(word)
      advice = f"did you mean --config={word}?" if is_config else "flags begin with --"
      raise UserError(f"{word!r} is no flag; {advice}")
    if name.startswith("noconfig."):
      path, has_value, text = name.removeprefix("noconfig."), "=", "false"
    elif name.startswith("config."):
      path = name.removeprefix("config.")
    else:
      advice = fields.advise(name, "--config.") or "settings are --config.NAME=VALUE"
      raise UserError(f"{flag} is no flag; {advice}")
    fields.check_field_name(path)
    if not has_value:
      if _TYPES[path] is bool:
        text = "true"
      elif words:
        text = words.pop(0)
      else:
        raise UserError(f"--config.{path} must be {fields.type_name(path)}")
    try:
      values[path] = parse_value(text, _TYPES[path])
    except ValueError as error:
      raise UserError(
        f"--config.{path}={text} must be {fields.type_name(path)}",
        setting=path,
        value=text,
      ) from error
  return values


def change(config: Config, values: Mapping[str, object]) -> Config:
  """Sets values of `config` in place, and returns `config`."""
  for path, value in values.items():
    fields.set_value(config, path, value)
  return config


def default_config(values: Mapping[str, object]) -> str:
  """Returns the name of the default config.

  For a folder, parquet or tar files it is "finetune_photos", or the config of
  `_OF_LABELS`; without `init_from`, it is the variant "scratch". For all other images
  it is "digits".

  Args:
    values: values from `parse_settings`.
  """
  are_files = values.get("data.name", "folder") in KINDS_OF_FILES
  if not values.get("data.dir") or not are_files or values.get("data.factory"):
    return "digits"
  name = _OF_LABELS.get(values.get("data.labels"), "finetune_photos")
  return name if values.get("init_from") else f"{name}:scratch"


def load_config(
  name: str | None,
  args: Sequence[str],
  saved: Config | None = None,
  trust_code: bool = False,
) -> Config:
  """Returns the settings that a command line asks for.

  Args:
    name: value of `--config`. None means `saved`, or `default_config` without a run.
    args: `--config.PATH=VALUE` flags.
    saved: the settings of the run in `--workdir`.
    trust_code: whether to allow code that only `saved` or a config.json names.

  Raises:
    UserError: a flag is wrong, the file does not exist, or code is not trusted.
  """
  values = parse_settings(args)
  if name is None and saved is not None:
    config = saved
    factories.check_trust(config, "the run in --workdir", trust_code, values)
  else:
    name = default_config(values) if name is None else name
    config = load_config_file(name, trust_code, values)
  return change(config, values)
