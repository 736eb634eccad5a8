"""What is chosen for the kind of device: compile options, memory and compute dtype.

The reasons and measurements are in `benchmarks/NOTES.md`.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import platform as host
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from resnet_jax.runtime.private_folder import private_folder
from resnet_jax.runtime.terminal import printable

Options = dict[str, str | int]
Function = Callable[..., Any]  # Of trees of arrays, as `jax.jit` takes it.

# XLA:CPU hands convolutions to YNNPACK by default, whose kernel gradient is slow.
# Without "convolution" in this list they go to Eigen; batch norm's reductions stay.
_CPU_OPTIONS: Options = {
  "xla_cpu_experimental_ynn_fusion_type": (
    "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
  )
}

# oneDNN's products of bfloat16 are several times as fast as what XLA makes of them,
# and on a processor without instructions for them many times as slow. For what has no
# bfloat16 they gain nothing, and a program with them cannot be kept in JAX's
# compilation cache (jaxlib 0.12).
_ONEDNN_OPTIONS: Options = {
  "xla_cpu_use_onednn": True,
  "xla_cpu_experimental_onednn_custom_call": True,
}
_ONEDNN_FLAGS = {"avx512_bf16", "amx_bf16"}

# Twenty random kernels took 8 s to compile well, and run once; but to draw 20 million
# numbers by what is compiled at level 0 takes longer than to compile it at level 1.
_CPU_ONCE_OPTION = "xla_backend_optimization_level"
_LARGE = 10_000_000

_CACHE = "jax_compilation_cache_dir"


@functools.cache
def _is_known(name: str, value: str | int) -> bool:
  """Whether this jaxlib has a compile option; one that it has not is an error to it."""
  try:
    jax.jit(lambda x: x, compiler_options={name: value})(jnp.zeros(()))
  except jax.errors.JaxRuntimeError:
    return False
  return True


@functools.cache
def processor_flags() -> str:
  """What kinds of instructions the processor has, as Linux lists them."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return host.processor()
  return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile_options(cpu_options: Options, platform: str | None = None) -> Options:
  if (platform or jax.default_backend()) != "cpu":
    return {}
  return {name: value for name, value in cpu_options.items() if _is_known(name, value)}


def jit(
  function: Function,
  platform: str | None = None,
  *,
  dtype: DTypeLike = jnp.float32,
  **kwargs: Any,
) -> jax.stages.Wrapped:
  """`jax.jit` for a function called over and over, tuned for a kind of device.

  Args:
    function: to be compiled.
    platform: "cpu", "gpu" or "tpu"; None is the default device's.
    dtype: that it computes in.
    **kwargs: of `jax.jit`.
  """
  options, is_bfloat16 = _CPU_OPTIONS, jnp.dtype(dtype) == jnp.bfloat16
  if is_bfloat16 and _ONEDNN_FLAGS & set(processor_flags().split()):
    options = options | _ONEDNN_OPTIONS
  options = _compile_options(options, platform)
  return jax.jit(function, compiler_options=options, **kwargs)


def jit_once(function: Function, size: int = 0, **kwargs: Any) -> jax.stages.Wrapped:
  """`jax.jit` for a function called once: on a CPU it compiles fast, runs slowly.

  Args:
    function: to be compiled.
    size: how many numbers it returns, about.
    **kwargs: of `jax.jit`.
  """
  options = _compile_options({_CPU_ONCE_OPTION: int(size > _LARGE)})
  return jax.jit(function, compiler_options=options, **kwargs)


def keep_freed_memory() -> None:
  """Has the C library keep memory that is given back to it, and hand it out again.

  A step takes all its memory at once, which by default comes from the system each
  time, page by page: a fifth of ResNet-50's step on two cores. For the whole process,
  and to be called before JAX starts, as threads that are there keep heaps of their own.
  Nothing is done but under glibc, and where JAX has an accelerator: its host has other
  work, which one heap for all threads would slow down.
  """
  if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
    return
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  if plugins or importlib.util.find_spec("libtpu"):
    return
  trim_threshold, most_mmaps, most_arenas = -1, -4, -8  # As malloc.h numbers them.
  for option, value in ((trim_threshold, -1), (most_mmaps, 0), (most_arenas, 1)):
    libc.mallopt(option, value)


def keep_compiled(folder: Path) -> None:
  """Has JAX keep in a folder what it compiles, and run what is kept there.

  Nothing changes where the user has chosen a folder for JAX, or where other users may
  write to this one (`private_folder`): then a line on standard error says so.
  """
  if getattr(jax.config, _CACHE) is not None:
    return
  try:
    private = private_folder(folder)
  except OSError as error:
    text = f"compiled programs are not kept for other runs: {error}"
    print(printable(text), file=sys.stderr)
    return
  jax.config.update(_CACHE, str(private))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def compute_dtype(name: str, platform: str | None = None) -> jnp.dtype:
  """Returns the dtype named "float32" or "bfloat16"; "auto" chooses by device."""
  if name == "auto":
    is_cpu = (platform or jax.default_backend()) == "cpu"
    name = "float32" if is_cpu else "bfloat16"
  return jnp.dtype(name)
