"""The structure of the code: which folders import which, and what no file may do."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Rooms are folders of the package; the lowest floor comes first. A file may import from
# its own room and from rooms on lower floors. A room within a room has a floor of its
# own, such as data/images.
FLOORS = [
  ["runtime"],
  ["config"],
  ["data", "kernels/native"],
  ["data/images", "data/batches", "kernels"],
  ["data/sources"],
  ["data/pipelines", "data/archives"],
  ["data/audit"],
  ["models"],
  ["weights", "runs"],
  ["training"],
  ["inference", "analysis"],
  ["evaluation"],
  ["experiments"],
  ["experiments/studies", "experiments/sweeps"],
  ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((ROOT / "resnet_jax").rglob("*.py"))
# The package's dependencies, except those that JAX and Flax import too.
NOT_FOR_NETWORKS = {
  *("PIL", "array_record", "chex", "cv2", "grain", "jaxtyping", "matplotlib", "optax"),
  *("orbax", "safetensors", "scipy", "sklearn", "tensorboardX", "tensorflow_datasets"),
}


def room(module: str) -> str:
  """Returns the innermost room of a dotted module, or ""."""
  parts = module.split(".")[1:]
  names = ["/".join(parts[:i]) for i in range(len(parts), 0, -1)]
  return next((name for name in names if name in FLOOR), "")


def imports(path: Path) -> set[str]:
  """Returns the modules of this package that a file imports, anywhere in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
      "resnet_jax"
    ):
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        found.add(whole if exists(whole) else node.module)
  return found


def exists(module: str) -> bool:
  path = ROOT / module.replace(".", "/")
  return path.is_dir() or path.with_suffix(".py").is_file()


def module_of(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts).removesuffix(".__init__")


WITH_VERSION = "cli", "evaluation", "experiments", "inference"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_to_lower_floors(path):
  own = room(module_of(path))
  if not own:  # The package itself exports from all rooms.
    return
  # The package itself has `__version__`.
  version = {"resnet_jax"} if own.split("/")[0] in WITH_VERSION else set()
  for module in imports(path) - version:
    other = room(module)
    assert other == own or FLOOR[other] < FLOOR[own], f"imports {module}"


def test_no_files_import_each_other_in_a_circle():
  arrows = {module_of(path): imports(path) for path in FILES}
  done: set[str] = set()

  def visit(module: str, path: tuple[str, ...]) -> None:
    assert module not in path, " -> ".join([*path, module])
    if module not in done:
      for other in sorted(arrows.get(module, ())):
        visit(other, (*path, module))
      done.add(module)

  for module in sorted(arrows):
    visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_say_their_idea(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 350
  assert ast.get_docstring(ast.parse(text))


def test_only_rooms_lie_at_the_top():
  top = {path.name for path in (ROOT / "resnet_jax").iterdir() if path.is_file()}
  assert top == {"__init__.py", "__main__.py", "py.typed"}


def test_only_one_file_makes_shardings():
  makers = {p.name for p in FILES if re.search(r"make_mesh|NamedSh", p.read_text())}
  assert makers == {"mesh.py"}


def test_networks_need_jax_flax_and_numpy_only():
  program = f"""
import sys

class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {NOT_FOR_NETWORKS}:
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import jax, jax.numpy as jnp, resnet_jax

images = jnp.zeros((2, 8, 8, 3))
model = resnet_jax.create_model("resnet8", num_classes=5)
assert model.apply(model.init(jax.random.key(0), images), images).shape == (2, 5)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
