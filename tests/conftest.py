"""Gives all tests eight virtual CPU devices and one cache of compiled programs.

With TEST_DEVICES=1 there is one device, as on a laptop, and the native kernels run.
`.ci/run` runs the tests of layers, steps and the trainer this way once more.
"""

import gc
import os
import shutil
import signal
import tempfile

import pytest
import wheels

# With its defaults, garbage collection takes a fifth of the time of a long session.
gc.set_threshold(50_000, 20, 100)
# Background jobs of a shell ignore SIGINT; the processes of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling programs that run for milliseconds.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
wheels.name_libjpeg_turbo()
# New for each session; the workers and the commands that tests run inherit it.
CACHE = None
if "PYTEST_XDIST_WORKER" not in os.environ:
  CACHE = tempfile.mkdtemp(prefix="resnet_jax_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402 - after the variables it reads
from jaxtyping import install_import_hook  # noqa: E402 - beside JAX, which it uses

# All annotated arguments and results are checked, including shapes and dtypes of
# arrays. Three parts are not checked: `config`, which declares fields of dataclasses by
# functions that do not return the annotated type; the readers of PyTorch's files, which
# must refuse hostile files by themselves and within measured memory; and the processes
# that tests start.
ROOMS = (
  *("runtime", "data", "kernels", "models", "weights.load_save", "weights.torch_names"),
  *("runs", "training", "inference", "analysis", "evaluation"),
  "experiments",
)
install_import_hook([f"resnet_jax.{room}" for room in ROOMS], "typecheck.check")

DEVICES = int(os.environ.get("TEST_DEVICES", "8"))
jax.config.update("jax_num_cpu_devices", DEVICES)
# An array with fewer axes than the other must get its missing axes explicitly.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=DEVICES == 1)
def native_kernels():
  """Traces with the kernels that a run on this machine would choose."""
  from resnet_jax import kernels

  with kernels.use(kernels.resolve("auto")):
    yield


@pytest.fixture
def one_device(monkeypatch):
  """Hides all devices but one: programs for one device compile sooner."""
  devices = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda: devices)


def pytest_collection_modifyitems(items):
  """Runs long files first, so that the workers end at the same time."""
  long = [
    "test_distributed.py",
    "test_use.py",
    "test_transfer.py",
    "test_docs.py",
    "test_trainer.py",
    "test_train.py",
    "test_native.py",
    "test_streaming.py",
    "test_studies.py",
    "test_weights.py",
    "test_steps.py",
    "test_parity.py",
    "test_backbone.py",
    "test_chaos.py",
    "test_dryrun.py",
  ]

  def place(item) -> int:
    return long.index(item.path.name) if item.path.name in long else len(long)

  items.sort(key=place)
  if DEVICES == 1:
    skip = pytest.mark.skip(reason="needs several devices")
    for item in items:
      if item.get_closest_marker("several_devices"):
        item.add_marker(skip)


def pytest_unconfigure():
  if CACHE:
    shutil.rmtree(CACHE, ignore_errors=True)
