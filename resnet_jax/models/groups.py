"""Groups of parameters that are frozen or have their own learning rate.

A group is a top-level name of the parameters: "stem", "stage1" ... "head". The groups
of the backbone of a segmenter or a detector are below "backbone". Frozen may also be
"body": all of a `ResNet` before its last norm.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey

from resnet_jax.config.allowed import check_choice
from resnet_jax.runtime.errors import UserError

BODY = "body"


def frozen_mask(frozen: Collection[str], tree: Any) -> Any:
  """Returns a tree of bools: whether each leaf is frozen.

  Args:
    frozen: names of groups, or "body": all but the head and the last norm. The last
      norm follows the stages of a pre-activation network. In other networks, it is the
      last one of the last block. (The norm of that block's shortcut, if it has one, is
      frozen.)
    tree: parameters or batch-norm statistics in the named layout by group. For "body"
      in the scanned layout, the last norm is not found, and so it is frozen.
  """
  has_body = BODY in frozen and BODY not in tree
  last_norm = _last_norm(tree) if has_body else None

  def is_frozen(path: tuple[DictKey, ...], _: object) -> bool:
    names = tuple(key.key for key in path)
    if names[0] == "backbone" and len(names) > 1 and names[0] not in frozen:
      names = names[1:]
    if names[0] in frozen or not has_body:
      return names[0] in frozen
    is_norm = last_norm is not None and names[: len(last_norm)] == last_norm
    return not is_norm and names[0] != "head"

  return jax.tree_util.tree_map_with_path(is_frozen, tree)


def _last_norm(tree: Mapping[str, Any]) -> tuple[str, ...] | None:
  """Returns the path of a `ResNet`'s last norm; None if it has no such arrays."""
  if "bn" in tree:
    return ("bn",)
  path: tuple[str, ...] = ()
  node = tree
  for kind in ("stage", "block", "bn"):
    numbers = [
      int(number)
      for name in node
      if name.startswith(kind) and (number := name.removeprefix(kind)).isdecimal()
    ]
    if not numbers:
      return None
    path = (*path, f"{kind}{max(numbers)}")
    node = node[path[-1]]
  return path


def check_frozen(
  frozen: Collection[str], groups: Sequence[str], has_body: bool = False
) -> None:
  """Checks the groups that `config.freeze` names.

  Args:
    frozen: the names.
    groups: all groups of the model, from the input to the output.
    has_body: whether the model is a `ResNet`, so that "body" may be frozen.

  Raises:
    UserError: the model has no such group, or all its groups are frozen.
  """
  for name in frozen:
    check_choice("config.freeze", name, [*groups, *[BODY] * has_body])
  # The last norm is in the group before the head.
  trained = set(groups[-2:] if has_body and BODY in frozen else groups) - set(frozen)
  if frozen and not trained:
    raise UserError(
      f"config.freeze={','.join(frozen)} leaves nothing to train; leave one out",
      setting="freeze",
      value=frozen,
    )


def check_multipliers(multipliers: Mapping[str, float], groups: Sequence[str]) -> None:
  """Checks the groups that `config.optim.learning_rate_multipliers` names.

  Raises:
    UserError: the model has no such group.
  """
  for name in multipliers:
    check_choice("config.optim.learning_rate_multipliers", name, groups)


def distances_from_head(groups: Sequence[str]) -> dict[str, int]:
  """Returns how far each group is from the head: 0 for "head", 1 for the last stage.

  The norm "bn" after the last stage of a pre-activation network is 0 too.

  Raises:
    UserError: a group is not "stem", "stage1", "stage2", ..., "bn" or "head".
  """
  stages = sum(name.startswith("stage") for name in groups)
  known = {"stem": stages + 1, "bn": 0, "head": 0}
  known |= {f"stage{i}": stages + 1 - i for i in range(1, stages + 1)}
  if unknown := [name for name in groups if name not in known]:
    raise UserError(
      "config.optim.layer_decay needs the groups stem, stage1, stage2, ... and head; "
      f"the network has {', '.join(unknown)}, so use "
      "config.optim.learning_rate_multipliers"
    )
  return {name: known[name] for name in groups}
