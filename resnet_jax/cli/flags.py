"""Command lines: flags and settings in, one clean line and an exit status out.

Exit status: 0 done, 1 the run failed, 2 wrong usage.
"""

import re
import sys
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from resnet_jax.config import schema as config_lib
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import fail

FLAGS = flags.FLAGS


def parse_flags(argv: list[str], default_config: str) -> list[str]:
  """Defines `--config`, reads the command line, exits with status 2 if it is wrong.

  Args:
    argv: the command line with the program's name.
    default_config: path of the config file used where none is named.

  Returns:
    What is left of `argv`: the program's name.
  """
  if {"-h", "--help", "--helpfull", "--helpshort"} & set(argv[1:]):
    print(_help())
    sys.exit(0)
  rest = _parse(FLAGS, argv, default_config)
  if FLAGS["verbosity"].using_default_value:
    logging.set_verbosity(logging.FATAL)  # What is raised is shown once.
  return rest


def load_config(path: str, settings: list[str]) -> Config:
  """Returns the settings of a config file; exits with status 2 if they are wrong.

  Args:
    path: of the file, with what follows its colon.
    settings: `--config.a.b=value` flags.
  """
  values = flags.FlagValues()
  _parse(values, ["resnet-jax", f"--config={path}", *settings], path)
  return values.config


def parse_settings(args: list[str]) -> dict[str, object]:
  """Returns the values of `--config.a.b=value` flags by their path.

  Exits with status 2 if one is wrong, or something else.
  """
  values = flags.FlagValues()
  _parse(values, ["resnet-jax", *args])
  return config_flags.get_override_values(values["config"])


def _parse(
  values: flags.FlagValues, argv: list[str], default_config: str | None = None
) -> list[str]:
  """Defines `--config`, a file or, without a default, settings only; reads `argv`."""
  known = []
  try:
    for arg in argv[1:]:
      if match := re.match(r"--?(?:no)?config\.([^=]+)", arg):
        config_lib.check_field_name(match[1])
    options = {"flag_values": values, "sys_argv": argv}
    if default_config is None:
      config_flags.DEFINE_config_dataclass("config", Config(), **options)
    else:
      known = sorted(str(path) for path in Path(default_config).parent.glob("*.py"))
      config_flags.DEFINE_config_file("config", default_config, **options)
    rest = values(argv)
    hasattr(values.config, "seed")  # A missing file is an error on first use only.
    if not isinstance(values.config, Config):
      raise TypeError(f"get_config() must return a Config, not {values.config!r}")
  except flags.IllegalFlagValueError as error:
    path = re.match(r"flag --config\.([^=]+)=", str(error))
    kind = f"; it must be {config_lib.type_name(path[1])}" if path else ""
    fail(2, f"{error}{kind}")
  except OSError as error:
    fail(2, f"{error}; there are: {', '.join(known)}")
  except Exception as error:  # Whatever a user's config file raises.
    fail(2, f"{type(error).__name__}: {error}")
  if len(rest) > 1:
    fail(2, f"{rest[1]!r} is no flag; flags begin with --")
  return rest


def _help() -> str:
  main = sys.modules["__main__"]
  lines = [main.__doc__ or "", "  --config: config file (default: configs/digits.py)"]
  for flag in FLAGS.get_key_flags_for_module(sys.argv[0]):
    lines.append(f"  --{flag.name}: {flag.help} (default: {flag.default})")
  for path, field, value in config_lib.walk(Config()):
    kind = config_lib.type_name(path)
    if kind == "text":
      kind = field.metadata.get("allowed", kind)
    lines.append(f"  --config.{path}: {kind} (unless the config says: {value!r})")
  return "\n".join(lines)


def read_config(saved: Config | None) -> Config:
  """Returns the settings that the flags ask for.

  Args:
    saved: those of the run in `--workdir`, if there is one: the start where no
      `--config` is given, so that `--workdir` alone goes on with a run.
  """
  if saved is None or FLAGS["config"].present:
    return FLAGS.config
  for path, value in config_flags.get_override_values(FLAGS["config"]).items():
    config_lib.set_value(saved, path, value)
  return saved
