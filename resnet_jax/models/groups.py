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
