"""Batch norm folded into convolutions, for inference.

In evaluation, batch norm multiplies by a constant scale and adds a constant bias. After
a convolution, the scale goes into the kernel, and the convolution adds the bias.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from resnet_jax import kernels
from resnet_jax.models.layers import PACKED, ModuleDef, Path, recorded_pairs
from resnet_jax.models.norms import FoldedNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variables import Variables, image_channels


def fold_batch_norm(
  model: nn.Module, variables: Variables
) -> tuple[nn.Module, Variables]:
  """Returns a network for evaluation with the same results and fewer operations.

  The results differ by rounding only. Within `jit`, folding costs one pass over the
  parameters.

  Args:
    model: any module. If it is a `ResNet` whose norm has `to_affine`, or has one in its
      field `net`, the norms that the field `norm_cls` of this net creates are folded.
      All else stays as it is.
    variables: {"params": ..., "batch_stats": ...}, in either layout.

  Returns:
    The network and its variables, for `apply(..., train=False)` only.
  """
  net = _net_of(model)
  if net is None or folded_model(model) is model:
    return model, variables
  norm: Any = net.norm_cls()
  convs = _find_norms(model, net, variables)
  params = traverse_util.flatten_dict(variables["params"])
  stats = traverse_util.flatten_dict(variables["batch_stats"])
  for norm_path in sorted({path[:-1] for path in stats}):
    seen, number = _as_traced(norm_path, convs)
    if seen not in convs:
      continue  # A norm that `norm_cls` did not create.
    own = {"params": _at(params, norm_path), "batch_stats": _at(stats, norm_path)}
    scale, bias = norm.to_affine(own)
    params[*norm_path, "bias"] = bias
    for name in own["batch_stats"]:
      del stats[*norm_path, name]
    if conv_path := convs[seen]:
      if number:
        conv_path = tuple(number if part == "blocks" else part for part in conv_path)
      kernel = (*conv_path, "kernel")
      params[kernel] *= jnp.expand_dims(scale, (-4, -3, -2))
      params.pop((*norm_path, "scale"), None)
    else:
      params[*norm_path, "scale"] = scale
  folded = {
    "params": traverse_util.unflatten_dict(params),
    "batch_stats": traverse_util.unflatten_dict(stats),
  }
  return folded_model(model), folded


def pack_kernels(
  model: nn.Module, variables: Variables, image_shape: tuple[int, ...]
) -> Variables:
  """Returns the variables of a folded network, and its kernels as a CPU reads them.

  The native kernels otherwise bring each kernel in order in each call. For one image,
  that takes a good part of the time. Without native kernels, nothing changes.

  Args:
    model: a network from `fold_batch_norm`.
    variables: its variables.
    image_shape: [B, H, W, C] of the images. Other shapes give the same results.
  """
  if kernels.current() != "native":
    return variables

  @jax.jit  # Only the kernels are computed: the outputs are dropped inside.
  def pack(variables: Variables, images: jax.Array) -> Any:
    _, packed = model.apply(variables, images, train=False, mutable=[PACKED])
    return packed

  return {**variables, **pack(variables, jnp.zeros(image_shape))}


def folded_model(model: nn.Module) -> nn.Module:
  """Returns the network that `fold_batch_norm` returns."""
  net = _net_of(model)
  if net is None or not _is_affine(type(net.norm_cls())):
    return model
  return _with_norm(model, net, FoldedNorm)


def _net_of(model: nn.Module) -> ResNet | None:
  """Returns the `ResNet` that gives a network its norms; None if there is none."""
  net = getattr(model, "net", model)
  return net if isinstance(net, ResNet) else None


def _with_norm(model: nn.Module, net: ResNet, norm_cls: ModuleDef) -> nn.Module:
  """Returns the network with another norm in `net`, its `_net_of`."""
  changed: nn.Module = net.clone(norm_cls=norm_cls)
  return changed if model is net else model.clone(net=changed)


def _is_affine(norm: type) -> bool:
  """Whether a class has a `to_affine` that describes its `__call__`.

  False for a subclass that overrides `__call__` but not `to_affine`.
  """
  for cls in norm.__mro__:
    if "to_affine" in vars(cls):
      return True
    if "__call__" in vars(cls):
      return False
  return False


def _at(flat: Mapping[Path, jax.Array], path: Path) -> dict[str, jax.Array]:
  """Returns the arrays directly under a path."""
  size = len(path)
  return {
    key[-1]: value
    for key, value in flat.items()
    if key[:size] == path and len(key) == size + 1
  }


def _as_traced(path: Path, norms: Collection[Path]) -> tuple[Path, str]:
  """Returns the path of a norm in the traced network, and the name of a scanned block.

  A scanned network has one module "blocks" instead of block2, block3 and so on. For a
  norm in one of these blocks, the first value has "blocks" in place of the block's
  name, and the second value is that name. Other norms keep their path, and get "".

  Args:
    path: path of the norm in the variables.
    norms: paths of the norms in the traced network.
  """
  for place, name in enumerate(path):
    scanned = (*path[:place], "blocks", *path[place + 1 :])
    if name.startswith("block") and scanned in norms and path not in norms:
      return scanned, name
  return path, ""


def _find_norms(
  model: nn.Module, net: ResNet, variables: Variables
) -> dict[Path, Path | None]:
  """Returns the path of each norm that the network creates by its field `norm_cls`.

  The value is the path of the convolution whose kernel takes the scale, or None.
  """
  made = []

  def norm(**kwargs: Any) -> Any:
    made.append(net.norm_cls(**kwargs))
    return made[-1]

  shapes: Any = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables
  )
  images = jax.ShapeDtypeStruct((1, 224, 224, image_channels(variables)), jnp.float32)
  traced = _with_norm(model, net, norm)
  with recorded_pairs() as pairs:
    jax.eval_shape(lambda v, x: traced.apply(v, x, train=False), shapes, images)
  convs: dict[Path, Path | None] = {norm.path: None for norm in made}
  return convs | {norm: conv for conv, norm in pairs if norm in convs}
