"""The settings of a run on disk: as JSON, and whether the run may go on with others."""

import dataclasses
import json

from resnet_jax.config.schema import Config, check_field_name, flatten
from resnet_jax.config.validation import validate

# What may change between a run and its continuation: nothing here touches the numbers
# of a step, but for images that could not be read before, and updates that were not
# finite. `num_*` may, except under a schedule that depends on them.
_FREE_ON_RESUME = {
  "num_epochs",
  "num_steps",
  "steps_per_call",
  "log_every_steps",
  "eval_every_steps",
  "checkpoint.every_steps",
  "checkpoint.keep",
  "data.dir",
  "data.num_threads",
  "data.num_workers",
  "data.on_error",
  "data.max_skip_share",
  "optim.shard_state",
  "optim.skip_nonfinite",
}


def to_json(config: Config) -> str:
  """Returns the settings as JSON text, one to a line."""
  return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
  """Rebuilds the settings that `to_json` wrote.

  Raises:
    ValueError: not JSON, an unknown name, or a value that `validate` refuses.
  """

  def build(cls, values: dict, prefix=""):
    if not isinstance(values, dict):
      raise ValueError(f"config.{prefix[:-1]}={values!r} must be a group of settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    made = {}
    for name, value in values.items():
      if name not in fields:
        check_field_name(prefix + name)
      kind = fields[name].type
      if dataclasses.is_dataclass(kind):
        value = build(kind, value, f"{prefix}{name}.")
      made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)

  config = build(Config, json.loads(text))
  validate(config)
  return config


def to_source(config: Config, doc: str) -> str:
  """Returns a config file that gives these settings: what differs from the defaults.

  Args:
    config: the settings.
    doc: the file's docstring.
  """
  names = []

  def build(group, indent: str) -> str:
    inner, lines = indent + "  ", []
    for field in dataclasses.fields(group):
      value = getattr(group, field.name)
      if dataclasses.is_dataclass(value):
        if text := build(value, inner):
          lines.append(f"{inner}{field.name}={text},\n")
      elif value != field.default:
        lines.append(f"{inner}{field.name}={value!r},\n")
    if not lines:
      return ""
    names.append(type(group).__name__)
    return f"{names[-1]}(\n{''.join(lines)}{indent})"

  made = build(config, "  ") or "Config()"
  imports = "".join(f"  {name},\n" for name in sorted({"Config", *names}))
  return (
    f'"""{doc}"""\n\nfrom resnet_jax.config import (\n{imports})\n\n\n'
    f"def get_config() -> Config:\n  return {made}\n"
  )


def check_resumable(old: Config, new: Config) -> None:
  """Refuses settings under which a run could not go on as if never stopped.

  Raises:
    ValueError: naming each changed setting with both values.
  """
  free = set(_FREE_ON_RESUME)
  if new.optim.schedule == "cosine":
    free -= {"num_epochs", "num_steps"}
  if not (old.data.eval_resize or old.data.eval_crop):  # Now the size of the images.
    free |= {"data.eval_resize", "data.eval_crop"}
  before, after = flatten(old), flatten(new)
  changed = [
    f"config.{path} was {before[path]!r} and is now {after[path]!r}"
    for path in before
    if path not in free and before[path] != after[path]
  ]
  if changed:
    raise ValueError(
      "cannot resume: " + "; ".join(changed) + "; set it back or use a new --workdir"
    )
