"""Finds the state dict of a network in a checkpoint of PyTorch."""

from collections.abc import Sequence
from typing import Any

from resnet_jax.runtime.errors import UserError
from resnet_jax.weights.torch_pickle import Refused, Tensor

# ResNet-1202 has 7,206 tensors, and 3,603 more with the momentum of SGD.
MOST_TENSORS = 30_000
_LONGEST_NAME = 200
# Keys under which checkpoints have their state dict: PyTorch's examples, torchvision,
# timm, Lightning and others. Some have the exponential moving average (EMA) too.
WRAPPERS = (
  *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights"),
  *("ema", "model_ema", "state_dict_ema", "ema_state_dict"),
)
# Endings of the names of all parameters and statistics of layers.
_ENDINGS = (".weight", ".bias", ".running_mean", ".running_var")


def find_state_dict(
  content: Any, problems: list[str], depth: int = 3
) -> dict[str, Tensor]:
  """Returns the tensors; their names begin with the wrapper's if there are several."""
  wrappers = [key for key in WRAPPERS if _wraps(content, key)] if depth else []
  if wrappers:
    parts = {
      key: find_state_dict(content[key], problems, depth - 1) for key in wrappers
    }
    if sum(map(len, parts.values())) > MOST_TENSORS:
      raise UserError(f"it has more than {MOST_TENSORS} tensors")
    if len(parts) == 1:
      return parts[wrappers[0]]
    return {f"{k}.{name}": part[name] for k, part in parts.items() for name in part}
  if not isinstance(content, dict):
    raise UserError(f"it holds a {type(content).__name__}, not a state dict")
  tensors: dict[str, Tensor] = {}
  for key, value in content.items():
    name = str(key)
    if isinstance(value, Tensor):
      tensors[name] = value
      if not isinstance(key, str) or len(name) > _LONGEST_NAME:
        raise UserError(f"the tensor name {name:.80} is not a string or too long")
    elif name.endswith(_ENDINGS):
      problems.append(f"{name:.80} is {describe_value(value)}, not a tensor")
  if not tensors and not problems:
    names = ", ".join(few([f"{key:.80}" for key in map(str, content)]))
    raise UserError(f"it holds no tensors; its keys: {names or 'none'}")
  return tensors


def _wraps(content: Any, key: str) -> bool:
  value = content.get(key) if isinstance(content, dict) else None
  parts = value.values() if isinstance(value, dict) else ()
  return any(isinstance(part, Tensor | dict) for part in parts)


def describe_value(value: Any) -> str:
  return value.what if isinstance(value, Refused) else f"a {type(value).__name__}"


def few(texts: Sequence[str], most: int = 10) -> list[str]:
  """Returns the first texts and the number of other texts, for a message."""
  more = [f"and {len(texts) - most} more"] if len(texts) > most else []
  return [*texts[:most], *more]
