"""Kernels of convolution and batch norm, and the choice between them.

A model calls `conv2d` and `batch_norm`. One of these kernels runs:

- "plain", the default: XLA's operations, unchanged. `jax.jvp`, `jax.export` and `vmap`
  work as on any Flax module.
- "xla": XLA's operations, with gradients that are fast on a CPU.
- "native": C++ kernels on a machine whose only device is a CPU; elsewhere like "xla".

`resolve` makes the choice before anything is traced, and `use` puts it into effect.
"""

from resnet_jax.kernels.batch_norm import batch_norm, normalize
from resnet_jax.kernels.choice import (
  current,
  resolve,
  resolve_for_inference,
  start,
  traced_with,
  use,
)
from resnet_jax.kernels.conv import conv2d

__all__ = [
  "batch_norm",
  "conv2d",
  "current",
  "normalize",
  "resolve",
  "resolve_for_inference",
  "start",
  "traced_with",
  "use",
]
