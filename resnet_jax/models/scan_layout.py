"""Two layouts of a network's variables: named and scanned.

Users, checkpoints and weight files have the named layout: `stage1/block1`,
`stage1/block2`, `stage1/block3`. The scanned layout is for `nn.scan`, which runs the
identical blocks of a stage as one. It has `stage1/block1` and `stage1/blocks`; the
latter stacks all blocks from the second on along a new first axis.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
_Change = Callable[[Mapping[str, Tree]], dict[str, Tree]]


def to_named(tree: Tree) -> Tree:
  """Splits every `blocks` into `block2`, `block3` and so on.

  Args:
    tree: nested dicts of arrays at any depth, such as variables, gradients or an
      optimiser's state. Parts in the named layout stay as they are.
  """
  return _map_dicts(_name_stage, tree)


def _name_stage(stage: Mapping[str, Tree]) -> dict[str, Tree]:
  named = {key: to_named(value) for key, value in stage.items() if key != "blocks"}
  if "blocks" in stage:
    leaves, structure = jax.tree.flatten(stage["blocks"])
    blocks = zip(*map(jnp.unstack, leaves), strict=True)
    for number, block in enumerate(blocks, 2):
      named[f"block{number}"] = jax.tree.unflatten(structure, block)
  return named


def to_scanned(tree: Tree) -> Tree:
  """Stacks `block2`, `block3` and so on into `blocks`; the inverse of `to_named`.

  Args:
    tree: as for `to_named`.
  """
  return _map_dicts(_scan_stage, tree)


def _scan_stage(stage: Mapping[str, Tree]) -> dict[str, Tree]:
  rest, scanned = [], {}
  for key, value in stage.items():
    if key.startswith("block") and key not in ("block1", "blocks"):
      rest.append((int(key.removeprefix("block")), value))
    else:
      scanned[key] = to_scanned(value)
  if rest:
    blocks = [value for _, value in sorted(rest, key=lambda pair: pair[0])]
    scanned["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
  return scanned


def laid_out_as(tree: Tree, example: Tree) -> Tree:
  """Converts a tree with named blocks to the layout of another tree.

  Args:
    tree: a tree with named blocks, as `to_named` returns it.
    example: parameters, as a network's `init` returns them.
  """
  return to_scanned(tree) if is_scanned(example) else tree


def is_scanned(tree: Tree) -> bool:
  """Whether any part of a tree has the scanned layout."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return any("blocks" in (getattr(k, "key", None) for k in path) for path, _ in paths)


def _map_dicts(function: _Change, tree: Tree) -> Tree:
  return jax.tree.map(
    lambda node: function(node) if _is_dict(node) else node, tree, is_leaf=_is_dict
  )


def _is_dict(node: Tree) -> bool:
  return isinstance(node, Mapping)
