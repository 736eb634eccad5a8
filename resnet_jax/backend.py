"""What is chosen for the kind of device: compile options and compute dtype.

The reasons and measurements are in `benchmarks/NOTES.md`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

# XLA:CPU hands convolutions to YNNPACK by default, whose kernel gradient is slow.
# Without "convolution" in this list they go to Eigen; batch norm's reductions stay.
_CPU_OPTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": (
    "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
  )
}


@functools.cache
def _compile_options(platform: str) -> dict[str, str]:
  """Returns the options that this jaxlib knows; an unknown one is an error to it."""
  known = {}
  for name, value in (_CPU_OPTIONS if platform == "cpu" else {}).items():
    try:
      jax.jit(lambda x: x, compiler_options={name: value})(jnp.zeros(()))
    except jax.errors.JaxRuntimeError:
      continue
    known[name] = value
  return known


def jit(function: Callable, **kwargs) -> Callable:
  """`jax.jit` for a function called over and over, tuned for the default device."""
  options = _compile_options(jax.default_backend())
  return jax.jit(function, compiler_options=options, **kwargs)


def jit_once(function: Callable, **kwargs) -> Callable:
  """`jax.jit` for a function called once: on a CPU it compiles fast, runs slowly."""
  options = {"xla_backend_optimization_level": 0}
  if jax.default_backend() != "cpu":
    options = {}
  return jax.jit(function, compiler_options=options, **kwargs)


def compute_dtype(name: str) -> jnp.dtype:
  """Returns the dtype named "float32" or "bfloat16"; "auto" chooses by device."""
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return jnp.dtype(name)
