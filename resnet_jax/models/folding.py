"""Batch norm folded into convolutions, for inference.

In evaluation a batch norm multiplies and adds constants. Where it follows a
convolution, the kernel takes over the factor and the convolution adds the rest.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from resnet_jax.models.layers import Path, recorded_pairs
from resnet_jax.models.norms import FoldedNorm
from resnet_jax.models.variables import Variables, image_channels


def fold_batch_norm(
  model: nn.Module, variables: Variables
) -> tuple[nn.Module, Variables]:
  """Returns a network for evaluation that computes the same with fewer operations.

  Equal but for rounding. It may be called within `jit`, where it costs a pass over the
  parameters.

  Args:
    model: any module. One that is not ours, or whose norm has no `to_affine`, such as
      group norm, comes back as it is.
    variables: {"params": ..., "batch_stats": ...}, in either layout.

  Returns:
    The network and its variables, for `apply(..., train=False)` only.
  """
  if folded_model(model) is model:
    return model, variables
  norm: Any = model.norm()
  pairs = _find_pairs(model, variables)
  params = traverse_util.flatten_dict(variables["params"])
  stats = traverse_util.flatten_dict(variables["batch_stats"])
  for norm_path in {path[:-1] for path in stats}:
    own = {"params": _at(params, norm_path), "batch_stats": _at(stats, norm_path)}
    scale, bias = norm.to_affine(own)
    params[*norm_path, "bias"] = bias
    if conv_path := _conv_before(norm_path, pairs):
      kernel = (*conv_path, "kernel")
      params[kernel] *= jnp.expand_dims(scale, (-4, -3, -2))
      params.pop((*norm_path, "scale"), None)
    else:
      params[*norm_path, "scale"] = scale
  folded = {"params": traverse_util.unflatten_dict(params), "batch_stats": {}}
  return folded_model(model), folded


def folded_model(model: nn.Module) -> nn.Module:
  """Returns the network that `fold_batch_norm` returns."""
  if not getattr(model, "FOLDS", False):
    return model
  norm: Any = model.norm()
  return model.clone(norm=FoldedNorm) if hasattr(norm, "to_affine") else model


def _at(flat: Mapping[Path, jax.Array], path: Path) -> dict[str, jax.Array]:
  """Returns the arrays right at a path."""
  size = len(path)
  return {
    key[-1]: value
    for key, value in flat.items()
    if key[:size] == path and len(key) == size + 1
  }


def _conv_before(norm: Path, pairs: Mapping[Path, Path]) -> Path | None:
  """Returns the path of the convolution that a norm follows.

  A scanned network runs its named blocks from the second on as one, "blocks".
  """
  if norm in pairs:
    return pairs[norm]
  for place, name in enumerate(norm):
    scanned = (*norm[:place], "blocks", *norm[place + 1 :])
    if name.startswith("block") and scanned in pairs:
      conv = pairs[scanned]
      return (*conv[:place], name, *conv[place + 1 :])
  return None


def _find_pairs(model: nn.Module, variables: Variables) -> dict[Path, Path]:
  """Returns the path of each norm that follows a convolution -> the convolution's."""
  shapes: Any = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables
  )
  images = jax.ShapeDtypeStruct((1, 32, 32, image_channels(variables)), jnp.float32)
  with recorded_pairs() as pairs:
    jax.eval_shape(lambda v, x: model.apply(v, x, train=False), shapes, images)
  return {norm: conv for conv, norm in pairs}
