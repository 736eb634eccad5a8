"""Checks groups of parameters that are frozen or have their own learning rate.

A group is a top-level name of the parameters: "stem", "stage1" ... "head".
"""

from collections.abc import Collection, Mapping, Sequence

from resnet_jax.config.allowed import check_choice
from resnet_jax.runtime.errors import UserError


def check_frozen(frozen: Collection[str], groups: Sequence[str]) -> None:
  """Checks the groups that `config.freeze` names.

  Args:
    frozen: the names.
    groups: all groups of the model.

  Raises:
    UserError: the model has no such group, or all its groups are frozen.
  """
  for name in frozen:
    check_choice("config.freeze", name, groups)
  if frozen and set(frozen) == set(groups):
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
