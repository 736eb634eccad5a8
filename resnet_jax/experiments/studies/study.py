"""The parts of a study: scales, networks and claims."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resnet_jax.config.schema import Config


def kind_of(name: str) -> str:
  """Returns the name of a model without its depth, such as "plain"."""
  return name.rstrip("0123456789")


@dataclasses.dataclass(frozen=True)
class Scale:
  """The images and the length of training.

  Attributes:
    text: a short description.
    config: returns the settings that all runs start from.
    seeds: number of runs of each network, unless the study says otherwise.
  """

  text: str
  config: Callable[[], Config]
  seeds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """One network of a study, with its settings. Its runs differ only in their seed.

  Attributes:
    label: name of the network; the directories of its runs begin with it.
    settings: the settings that differ from those of the scale, by path.
    series: networks of one series share a panel of the curves.
    depth: number of layers with weights.
  """

  label: str
  settings: Mapping[str, Any]
  series: str
  depth: int

  @property
  def kind(self) -> str:
    """The model's name without its depth, such as "plain"."""
    return kind_of(self.settings["model.name"])


@dataclasses.dataclass(frozen=True)
class Claim:
  """The claim that a metric is higher in one network than in another.

  Attributes:
    text: one sentence.
    higher, lower: labels of the two networks.
    metric: a key of `outcomes.METRICS`.
    margin: the claim holds if the metric of `higher` plus this margin is higher.
  """

  text: str
  higher: str
  lower: str
  metric: str = "train_error"
  margin: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A question, the networks to answer it, and the claims of the paper.

  Attributes:
    title: a word.
    text: what the paper says, and where.
    variants: the networks, by scale; a study need not have all scales.
    claims: a claim is checked at the scales that have both of its networks.
    seeds: number of runs per network, by scale, if it differs from the scale's.
    measure: a measurement of each trained network, a key of
      `layer_responses.MEASUREMENTS`; "" is none.
    over_depth: whether to also draw the errors over depth.
  """

  title: str
  text: str
  variants: Mapping[str, Sequence[Variant]]
  claims: Sequence[Claim]
  seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
  measure: str = ""
  over_depth: bool = False
