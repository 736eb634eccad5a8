"""The kernels under the compiler's sanitizers: memory, undefined behaviour, threads."""

import os
import subprocess
from pathlib import Path

import jax
import pytest
from test_native import SHAPES

from resnet_jax.runtime import native_library as library

HERE = Path(__file__).parent
KERNELS = library.FOLDER
RECTANGLES = [(2, 6, 11, 8, 16, *taps, 2, 0) for taps in [(3, 3), (1, 3), (5, 2)]]
# Uninitialised memory is NaN, so a result that depends on it is NaN too.
ENVIRONMENT = os.environ | {
  "ASAN_OPTIONS": "malloc_fill_byte=255:max_malloc_fill_size=1000000000"
}


def build(source: Path, program: Path, sanitizers: str) -> None:
  flags = ["-std=c++17", "-O1", "-g1", "-march=native", "-pthread", "-w"]
  flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
  folders = [f"-I{jax.ffi.include_dir()}", f"-I{KERNELS}"]
  command = [*library._compiler(), *flags, *folders, str(source), "-o", str(program)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
  command = [str(program), *map(str, arguments)]
  return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.sanitizers
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_report_nothing(sanitizers, tmp_path):
  empty = tmp_path / "empty.cc"
  empty.write_text("int main() {}")
  try:
    build(empty, tmp_path / "empty", sanitizers)
    assert run(tmp_path / "empty").returncode == 0
  except (AssertionError, library.CompileError) as error:
    pytest.skip(f"there is no such sanitizer here: {error}")
  build(HERE / "kernels_main.cc", tmp_path / "kernels", sanitizers)
  squares = [(n, side, side, c, f, k, k, *rest) for n, side, c, f, k, *rest in SHAPES]
  numbers = [number for shape in squares + RECTANGLES for number in shape]
  done = run(tmp_path / "kernels", *numbers)
  assert (done.returncode, done.stderr) == (0, "")
