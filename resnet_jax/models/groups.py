"""Groups of parameters: which stay frozen, which learn at another rate."""

import math

from resnet_jax.config.schema import check_choice
from resnet_jax.models.resnet import ResNet


def parse_frozen(text: str, model: ResNet) -> tuple[str, ...]:
  """Returns the groups that `config.freeze` names.

  Raises:
    ValueError: the model has no such group, or no other one.
  """
  frozen = tuple(name.strip() for name in text.split(",") if text)
  for name in frozen:
    check_choice("config.freeze", name, model.groups)
  if set(frozen) == set(model.groups):
    raise ValueError(f"config.freeze={text!r} leaves nothing to train; leave one out")
  return frozen


def parse_multipliers(text: str, model: ResNet) -> dict[str, float]:
  """Returns group -> factor of `config.optim.learning_rate_multipliers`.

  Raises:
    ValueError: the model has no such group, or a factor is no number >= 0.
  """
  setting, factors = "config.optim.learning_rate_multipliers", {}
  for part in text.split(",") if text else ():
    name, _, number = part.partition("=")
    check_choice(setting, name.strip(), model.groups)
    try:
      factors[name.strip()] = factor = float(number)
    except ValueError:
      factor = math.nan
    if not 0 <= factor < math.inf:
      raise ValueError(
        f"{setting}={text!r}: {part!r} must be GROUP=NUMBER, such as head=10"
      )
  return factors
