"""Muon for the kernels of convolutions, and Adam for all other parameters."""

import math

import jax
import optax
from jax.tree_util import DictKey
from optax import contrib

# Newton-Schulz makes all singular values of an update about 1. This factor gives it the
# root mean square of Adam's updates (Liu et al. 2025, section 2.2).
_RMS_OF_ADAM = 0.2
# A kernel [h, w, in, out] is the matrix [h * w * in, out]. With `model.scan` it has one
# more axis, the block, and each block is a matrix of its own.
_AS_MATRIX = contrib.MuonDimensionNumbers((-4, -3, -2), -1)


def muon_or_adam(momentum: float, nesterov: bool) -> optax.GradientTransformation:
  """Returns the direction of an update: Muon's for convolutions, Adam's elsewhere.

  Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of
  a matrix by the nearest matrix with orthonormal rows or columns. Its authors use it
  for "all the convolutional filters" of a network, the first one included, and Adam for
  the head, norms and biases (README of github.com/KellerJordan/Muon). The kernel of a
  grouped convolution is one matrix.

  The updates have the size of Adam's: a matrix of shape [a, b] is multiplied by
  0.2 sqrt(max(a, b)) (Liu et al. 2025, arXiv:2502.16982, section 2.2). So both have the
  same learning rate.

  Args:
    momentum: decay of Muon's momentum.
    nesterov: use Nesterov's momentum in Muon.
  """
  muon = contrib.scale_by_muon(
    beta=momentum,
    nesterov=nesterov,
    weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: _AS_MATRIX, tree),
  )
  scale = optax.stateless(lambda updates, _: jax.tree.map(_scale_as_adam, updates))
  rules = {"muon": optax.chain(muon, scale), "adam": optax.scale_by_adam()}
  return optax.partition(rules, _labels)


def _scale_as_adam(update: jax.Array) -> jax.Array:
  *_, height, width, inputs, outputs = update.shape
  return _RMS_OF_ADAM * math.sqrt(max(height * width * inputs, outputs)) * update


def _labels(params: optax.Params) -> optax.Params:
  """Returns a tree with "muon" at the kernels of convolutions and "adam" elsewhere."""

  def label(path: tuple[DictKey, ...], leaf: jax.Array) -> str:
    names = [key.key for key in path]
    rank = leaf.ndim - ("blocks" in names)  # See `models.scan_layout`.
    return "muon" if names[-1] == "kernel" and rank == 4 else "adam"

  return jax.tree_util.tree_map_with_path(label, params)
