"""The shape of the code: who imports whom, and what is never imported."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module imports from lower levels, and from its own within a package.
LEVELS = [
  {
    "config",
    "backend",
    "torch_pickle",
    "preprocessing",
    "stop",
    "digests",
    "distributed",
    "hlo",
    "chips",
    "explain",
    "writing",
  },
  {"native", "arguments", "pictures", "tables"},
  {"models", "plan", "validation", "torch_file"},
  {"saved_config", "metrics", "sharding", "optim", "curves", "torch_names", "summary"},
  {"data", "train_state", "run_dir"},
  {"steps", "checkpoint", "writers", "weights", "jobs"},
  {"transfer", "studies"},
  {"evaluation"},
  {"trainer", "convert", "diagnostics", "sweeps"},
  {"cli", "dryrun", "trained"},
  {"predict", "features", "export", "worker"},
  {"dryrun_command", "use_commands", "study_command", "sweep_command"},
  {"commands"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted((ROOT / "resnet_jax").rglob("*.py"))


def unit(path: Path) -> str:
  return path.relative_to(ROOT / "resnet_jax").parts[0].removesuffix(".py")


def imported_units(path: Path) -> set[str]:
  units = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
      "resnet_jax"
    ):
      _, *rest = node.module.split(".")
      units |= {rest[0]} if rest else {alias.name for alias in node.names}
  return units


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_to_lower_levels(path):
  name = unit(path)
  if name == "__init__":
    return
  for other in imported_units(path) - {name}:
    assert LEVEL[other] < LEVEL[name]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_say_their_idea(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 350
  assert ast.get_docstring(ast.parse(text))


def test_only_one_file_makes_shardings():
  makers = {p.name for p in FILES if re.search(r"make_mesh|NamedSh", p.read_text())}
  assert makers == {"sharding.py"}
