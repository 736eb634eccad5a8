"""Compile options, memory and compute dtype for each kind of device.

The reasons and measurements are in `benchmarks/NOTES.md`.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from resnet_jax.runtime.native_library import processor_flags
from resnet_jax.runtime.private_folder import cache_dir, private_folder
from resnet_jax.runtime.terminal import printable

Options = dict[str, str | int]
Function = Callable[..., Any]  # A function of trees of arrays, for `jax.jit`.

# By default, YNNPACK computes the convolutions of XLA:CPU; its kernel gradient is slow.
# Without "convolution" in this list, Eigen computes them. YNNPACK keeps the reductions
# of batch norm.
_CPU_OPTIONS: Options = {
  "xla_cpu_experimental_ynn_fusion_type": (
    "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
  )
}

# For bfloat16, oneDNN's matrix products are several times as fast as XLA's, but many
# times as slow on a processor without bfloat16 instructions. For other dtypes they are
# no faster, and JAX's compilation cache cannot keep a program with them (jaxlib 0.12).
_ONEDNN_OPTIONS: Options = {
  "xla_cpu_use_onednn": True,
  "xla_cpu_experimental_onednn_custom_call": True,
}
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}

# Initialisation runs only once, so level 0, which compiles fast, is usually best: full
# optimisation took 8 s for 20 kernels. But code of level 0 draws 20 million random
# numbers so slowly that level 1 takes less time in total.
_CPU_ONCE_OPTION = "xla_backend_optimization_level"
_LARGE = 10_000_000
_MOST_CONSTANT = 4 << 20  # Bytes of variables.

_CACHE = "jax_compilation_cache_dir"
_WORTH_KEEPING_S = 0.1  # A small network has many small programs.
_MOST_AGE_S = 30 * 24 * 3600


@functools.cache
def _is_known(name: str, value: str | int) -> bool:
  """Whether this jaxlib has a compile option; it fails on unknown ones."""
  try:
    jax.jit(lambda x: x, compiler_options={name: value})(jnp.zeros(()))
  except jax.errors.JaxRuntimeError:
    return False
  return True


def has_bfloat16() -> bool:
  """Whether the processor multiplies matrices of bfloat16 by instructions for that."""
  return bool(_BFLOAT16_FLAGS & set(processor_flags().split()))


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
  """`jax.jit` for a function called many times, tuned for a kind of device.

  Args:
    function: the function to compile.
    platform: "cpu", "gpu" or "tpu"; None is that of the default device.
    dtype: dtype of its computation.
    **kwargs: arguments of `jax.jit`.
  """
  options = _CPU_OPTIONS
  if jnp.dtype(dtype) == jnp.bfloat16 and has_bfloat16():
    options = options | _ONEDNN_OPTIONS
  options = _compile_options(options, platform)
  return jax.jit(function, compiler_options=options, **kwargs)


def are_constants(variables: Any) -> bool:
  """Whether a program should have these variables as constants.

  To pass an array takes about three microseconds a call. That is a seventh of the time
  in which a CPU classifies one image with ResNet-20. Constants make a program as large
  as they are, so this is only for small networks.
  """
  num_bytes: int = sum(array.nbytes for array in jax.tree.leaves(variables))
  return num_bytes <= _MOST_CONSTANT


def jit_once(function: Function, size: int = 0, **kwargs: Any) -> jax.stages.Wrapped:
  """`jax.jit` for a function called once: on CPU it compiles fast and runs slowly.

  Args:
    function: the function to compile.
    size: approximate number of values that it returns.
    **kwargs: arguments of `jax.jit`.
  """
  options = _compile_options({_CPU_ONCE_OPTION: int(size > _LARGE)})
  return jax.jit(function, compiler_options=options, **kwargs)


def prepare_process() -> None:
  """Does what a command that computes alone does before JAX starts."""
  keep_freed_memory()
  keep_compiled()


def keep_freed_memory() -> None:
  """Makes the C library keep freed memory and reuse it.

  A step allocates all its memory in one block. By default, the system provides this
  memory anew at each step, page by page, which takes a fifth of ResNet-50's step on two
  cores. The setting is for the whole process. Call it before JAX starts, as existing
  threads keep their own heaps. Nothing happens without glibc, or if JAX has an
  accelerator. With one, the CPU does other work, such as reading images, which one heap
  for all threads would slow down.
  """
  if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
    return
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  if plugins or importlib.util.find_spec("libtpu"):
    return
  trim_threshold, most_mmaps, most_arenas = -1, -4, -8  # Their numbers in malloc.h.
  for option, value in ((trim_threshold, -1), (most_mmaps, 0), (most_arenas, 1)):
    libc.mallopt(option, value)


def keep_compiled() -> None:
  """Makes JAX keep compiled programs in the user's cache folder and reuse them.

  Nothing changes if the user has chosen a folder for JAX. Nothing changes either if
  other users may write to this folder (`private_folder`); a line on standard error then
  says so. If several processes train together, all compile: otherwise, those that find
  their program would wait for the others, some of them for longer than a connection
  lasts.
  """
  if getattr(jax.config, _CACHE) is not None or jax.distributed.is_initialized():
    return
  # JAX distinguishes its versions, but not the extensions of processors.
  key = hashlib.sha256(processor_flags().encode()).hexdigest()[:16]
  try:
    private = private_folder(cache_dir() / f"compiled-{key}")
    _remove_old(private)
  except (OSError, RuntimeError) as error:  # RuntimeError: no home folder.
    text = f"compiled programs are not kept for other runs: {error}"
    print(printable(text), file=sys.stderr)
    return
  # A program that JAX cannot keep, see `_ONEDNN_OPTIONS`, is compiled each time.
  warnings.filterwarnings("ignore", "Error writing persistent compilation cache")
  jax.config.update(_CACHE, str(private))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING_S)


def _remove_old(folder: Path) -> None:
  """Removes programs that were compiled more than 30 days ago."""
  for path in folder.iterdir():
    with contextlib.suppress(OSError):  # Another process may do the same.
      if path.is_file() and time.time() - path.lstat().st_mtime > _MOST_AGE_S:
        path.unlink()


def compute_dtype(name: str, platform: str | None = None) -> jnp.dtype:
  """Returns the dtype named "float32" or "bfloat16"; "auto" depends on the device."""
  if name == "auto":
    is_cpu = (platform or jax.default_backend()) == "cpu"
    name = "float32" if is_cpu else "bfloat16"
  return jnp.dtype(name)
