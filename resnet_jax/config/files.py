"""Config files: finds those of the package by name, and others by path.

A config file is a Python file with a function `get_config`. The function returns a
`Config`, and may take the name of a variant. The `config.json` of a run is a config
file too.
"""

import ast
import importlib.util
import inspect
import os
import traceback
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from resnet_jax.config import serialization
from resnet_jax.config.allowed import nearest
from resnet_jax.config.factories import check_trust
from resnet_jax.config.schema import Config
from resnet_jax.runtime.errors import NotFoundError, UserError

_ALLOWED = (
  "--config takes a name of `resnet-jax configs`, such as digits, a Python file (.py), "
  "the config.json of a run or the run's directory"
)


def configs_dir() -> Path:
  """Returns the folder of the package's own config files."""
  package = Path(__file__).resolve().parents[1]
  installed = package / "configs"
  return installed if installed.is_dir() else package.parent / "configs"


def list_configs() -> dict[str, str]:
  """Returns {name: first line} of the package's config files."""
  found = {}
  for path in sorted(configs_dir().glob("*.py")):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found[path.stem] = doc.split("\n")[0]
  return found


def find_config(name: str) -> Path:
  """Returns the file that `--config` names; `name` has no colon and variant.

  These are tried in order: the package's config of that name; the file of that path;
  the `config.json` of that run directory; the file with .py added; the package's config
  by its path in the repository, such as configs/digits.py.

  Raises:
    NotFoundError: neither the file nor the package's config exists.
    UserError: the file is neither Python nor JSON.
  """
  if found := find_file(name, configs_dir()):
    if found.suffix not in (".py", ".json"):
      raise UserError(f"--config={name} is no config file; {_ALLOWED}")
    return found
  path, known = Path(name), list_configs()
  if name and path.is_dir():
    raise NotFoundError(f"--config={name} is a folder without config.json; {_ALLOWED}")
  advice = _ALLOWED
  if path.stem in known:
    advice = f"the package has --config={path.stem}"
  elif near := nearest(path.stem, known):
    advice = f"did you mean {', '.join(near)}? {_ALLOWED}"
  raise NotFoundError(f"there is no --config={name}; {advice}")


def find_file(name: str, folder: Path) -> Path | None:
  """Returns the file that a flag names, as in `find_config`; None if none exists.

  Args:
    name: name of a file in `folder`, without .py, or a path.
    folder: folder of the package's files: `configs/` or a folder in it.
  """
  if not name:
    return None
  path = Path(os.path.expanduser(name))
  places = [path, path / "config.json", Path(f"{path}.py")]
  if path.name == name:
    places.insert(0, folder / f"{name}.py")
  if path.parts[0] == "configs":
    own = configs_dir().joinpath(*path.parts[1:])
    places += [own, Path(f"{own}.py")]
  return next((place for place in places if place.is_file()), None)


def load_config_file(
  name: str, trust_code: bool = False, named: Collection[str] = ()
) -> Config:
  """Returns the settings that `--config=NAME[:VARIANT]` names, without checking them.

  Args:
    name: a name of `list_configs`, or the path of a file or a run; a colon and the
      name of a variant may follow.
    trust_code: whether to run code that a config.json names.
    named: settings that the user gave in this call; they replace those of the file.

  Raises:
    NotFoundError: the file does not exist.
    UserError: the file is not a config file, lacks the variant, or is a config.json
      that names code to run. Config files in Python are not checked for this, as the
      user runs their code anyway.
  """
  path_name, _, variant = name.partition(":")
  if os.name == "nt" and len(path_name) == 1:  # The colon of C:\\...
    drive, (path_name, _, variant) = path_name, name[2:].partition(":")
    path_name = f"{drive}:{path_name}"
  path = find_config(path_name)
  if path.suffix == ".json":
    if variant:
      raise UserError(f"--config={name}: a config.json has no variants")
    try:
      config = serialization.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
      raise UserError(f"--config={name} is no config.json of a run: {error}") from error
    check_trust(config, f"--config={name}", trust_code, named)
    return config
  made = _get_config(path, name, variant)
  if not isinstance(made, Config):
    raise UserError(
      f"--config={name}: get_config() must return a Config, not {made!r:.80}"
    )
  return made


def _get_config(path: Path, name: str, variant: str) -> object:
  """Runs a config file; an error in it becomes one line with its line number."""
  try:
    function = _import_file(path).get_config
    if variant and not inspect.signature(function).parameters:
      raise UserError(f"--config={name}: {path.name} has no variants")
    return function(variant) if variant else function()
  except UserError:
    raise
  except Exception as error:  # The user's code may raise anything.
    lines = traceback.extract_tb(error.__traceback__)
    own = [line.lineno for line in lines if line.filename == str(path)]
    place = f", line {own[-1]}" if own else ""
    raise UserError(
      f"--config={name}{place}: {type(error).__name__}: {error}"
    ) from error


def _import_file(path: Path) -> ModuleType:
  spec = importlib.util.spec_from_file_location("resnet_jax_config", path)
  assert spec is not None and spec.loader is not None  # The suffix is .py.
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
