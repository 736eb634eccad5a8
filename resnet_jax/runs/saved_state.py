"""The state of a run, as a store of checkpoints sees it."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from resnet_jax.models.variables import Variables

S = TypeVar("S", bound="State")


@runtime_checkable
class State(Protocol):
  """What can be saved and restored."""

  @property
  def variables(self) -> Variables:
    """What the model is applied to."""

  def to_saved(self) -> dict[str, Any]:
    """Returns the "model" and "training" parts, in the named layout."""

  def from_saved(self: S, parts: Mapping[str, Any]) -> S:
    """Returns this state with the two parts replaced."""
