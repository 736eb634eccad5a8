"""How convolution and batch norm are computed on each kind of device.

A model calls `conv2d` and `batch_norm` and does not know which of these runs:

- "plain": XLA's operations as they are. `jax.jvp`, `jax.export` and `vmap` work as on
  any Flax module. This is what a model does unless someone chooses otherwise.
- "xla": XLA's operations, with gradients written so that a CPU computes them fast.
- "native": C++ kernels, on a machine whose only device is a CPU; else as "xla".

`resolve` makes the choice before anything is traced, and `use` puts it into effect.
"""

from resnet_jax.kernels.batch_norm import batch_norm, normalize
from resnet_jax.kernels.choice import current, resolve, traced_with, use
from resnet_jax.kernels.conv import conv2d

__all__ = [
  "batch_norm",
  "conv2d",
  "current",
  "normalize",
  "resolve",
  "traced_with",
  "use",
]
