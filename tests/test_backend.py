"""Tuning for a CPU changes no result, and the process keeps its freed memory."""

import contextvars
import os
import stat
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal, variables_of

from resnet_jax.kernels import native
from resnet_jax.models.blocks import BottleneckBlock, PreActBasicBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stems import CifarStem
from resnet_jax.runtime import compilation
from resnet_jax.runtime.mesh import create_mesh, replicated
from resnet_jax.training.state import StateInit
from resnet_jax.training.steps import compile_train_chunk
from resnet_jax.training.tasks import Classification

NETS = {
  "basic blocks, CIFAR's stem": {"stem_cls": CifarStem, "features": 16},
  "bottlenecks, scanned": {
    "stage_sizes": (3, 2),
    "block_cls": BottleneckBlock,
    "features": 32,
    "scan": True,
  },
  "pre-activation": {"block_cls": PreActBasicBlock, "pre_activation": True},
}


@pytest.mark.skipif(bool(native.why_not_loaded()), reason="needs a C++ compiler")
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_tuned_steps_are_the_untuned_ones(net, monkeypatch):
  """Compares forward, backward and update with all CPU tuning and without."""
  model = ResNet(**{"stage_sizes": (1, 1), "num_classes": 4} | net)
  sharding = replicated(create_mesh(jax.devices()[:1]))
  feed = {
    "image": jax.random.bits(jax.random.key(0), (4, 32, 32, 3), "uint8"),
    "label": jnp.arange(4),
    "mask": jnp.ones(4, bool),
  }

  def train(kernel_choice):
    tx = optax.sgd(0.01, 0.9)
    state = StateInit(model, tx, (32, 32, 3), sharding)(jax.random.key(0))
    chunk = compile_train_chunk(
      preprocess=lambda images, key: images.astype(jnp.float32) / 64 - 2,
      take_batch=lambda feed, step: feed,
      task=Classification(4),
      sharding=sharding,
      kernel_choice=kernel_choice,
    )
    text = chunk.lower(state, feed, 3).as_text()
    state, metrics = chunk(state, feed, 3)
    return text, (state.params, state.batch_stats, metrics)

  monkeypatch.setattr(compilation, "_CPU_OPTIONS", {})
  monkeypatch.setattr(compilation, "_ONEDNN_OPTIONS", {})
  text, untuned = train("xla")
  assert "resnet_jax" not in text
  monkeypatch.undo()
  text, tuned = train("native")
  assert "@resnet_jax_conv_kernel_gradient_float32(" in text
  assert "@resnet_jax_batch_norm_sums_float32(" in text

  def assert_close(a, b):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale)

  jax.tree.map(assert_close, tuned, untuned)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("train", [False, True])
def test_a_user_exports_and_derives_a_network_without_a_choice_of_kernels(net, train):
  """The custom calls of native kernels allow neither export nor forward mode."""
  model = ResNet(**{"stage_sizes": (1, 1), "num_classes": 4} | net)
  images = normal(2, 16, 16, 3)
  variables = variables_of(model, images)

  def logits(factor):
    mutable = ["batch_stats"] if train else False
    found = model.apply(variables, factor * images, train=train, mutable=mutable)
    return found[0] if train else found

  def check():
    factor = jnp.ones(())
    exported = jax.export.export(jax.jit(logits), platforms=["cpu", "cuda", "tpu"])
    assert jax.export.deserialize(exported(factor).serialize())
    # Lowering is enough: a `custom_vjp` already refuses forward mode in it.
    jax.jit(lambda x: jax.jvp(logits, [x], [x])).lower(factor)
    jax.jit(jax.hessian(logits)).lower(factor)
    jax.jit(jax.vmap(logits)).lower(jnp.ones(3))

  contextvars.Context().run(check)  # No kernels are chosen in this context.


def test_onednn_is_for_bfloat16_alone(monkeypatch):
  """In float32, oneDNN is not faster, and its programs cannot be cached."""
  given = []
  monkeypatch.setattr(compilation, "processor_flags", lambda: "flags: avx512_bf16")
  monkeypatch.setattr(
    compilation, "_compile_options", lambda *args: given.append(args[0])
  )
  jit = jax.jit
  monkeypatch.setattr(jax, "jit", lambda function, **kwargs: jit(function))
  for dtype in (jnp.float32, "float32", "bfloat16"):
    compilation.jit(jnp.negative, dtype=dtype)
  both = compilation._CPU_OPTIONS | compilation._ONEDNN_OPTIONS
  assert given == [compilation._CPU_OPTIONS, compilation._CPU_OPTIONS, both]


def test_an_option_that_jaxlib_does_not_know_is_left_out():
  options = {"xla_backend_optimization_level": 0, "xla_cpu_of_tomorrow": True}
  assert compilation._compile_options(options, "cpu") == {
    "xla_backend_optimization_level": 0
  }
  assert compilation._compile_options(options, "gpu") == {}


FAULTS = """
import resource, sys
from resnet_jax.runtime import compilation
if sys.argv[1] == "keep":
  compilation.keep_freed_memory()
import jax, jax.numpy as jnp
f, x = jax.jit(jnp.negative), jnp.ones((4096, 4096))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(80):
  f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_kept():
  def faults(mode: str) -> int:
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.check_output(command, env=environment, text=True))

  # Another thread frees the arrays, sometimes after the next one is allocated. So the
  # heap grows now and then, to about ten arrays, and not in each of the 80 calls.
  default = faults("default")
  if default < 5000:
    pytest.skip("this C library keeps freed memory by default")
  assert faults("keep") < default / 3


KEEP = """
import sys
import jax, jax.numpy as jnp
from resnet_jax.runtime import compilation
compilation.processor_flags = lambda: ""
compilation.keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
"""


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o770, 0o777])
def test_compiled_programs_are_kept_where_nobody_else_can_write(mode, tmp_path):
  folder = tmp_path / "resnet_jax" / "compiled-e3b0c44298fc1c14"
  old, new = folder / "old", folder / "new"
  if mode != 0o700:
    folder.mkdir(parents=True)
    old.touch(), new.touch()
    os.utime(old, (0, 0))
    folder.chmod(mode)
  environment = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
  environment["XDG_CACHE_HOME"] = str(tmp_path)
  command = [sys.executable, "-c", KEEP]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0
  assert stat.S_IMODE(folder.stat().st_mode) == mode
  is_shared = mode & 0o022 != 0
  assert done.stderr.startswith("compiled programs are not kept for") == is_shared
  assert len(done.stderr.splitlines()) == is_shared
  assert any(folder.glob("jit*")) != is_shared
  assert old.exists() == is_shared
  assert new.exists() == (mode != 0o700)
