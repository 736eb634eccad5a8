"""The form of a network in which exporters and other engines take it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.models.folding import fold_batch_norm, folded_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables


def portable(model: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
  """Returns a network with the same results, and its variables on the CPU.

  Batch norm is folded. A `ResNet` computes in float32, and its blocks are written one
  after the other, without `scan` and `remat`.

  Args:
    model: the network.
    variables: {"params": ..., "batch_stats": ...} in the named layout.
  """
  if isinstance(model, ResNet):
    model = model.clone(dtype=jnp.float32, scan=False, remat=False)
  # The CPU computes in full float32; accelerators multiply with fewer bits.
  cpu = jax.local_devices(backend="cpu")[0]
  with jax.default_device(cpu):
    fold = jax.jit(lambda variables: fold_batch_norm(model, variables)[1])
    return folded_model(model), fold(jax.device_put(variables, cpu))
