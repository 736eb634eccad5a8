"""The protocols of metric sinks and trackers.

A metric sink takes the numbers of a run: `metrics.jsonl` and TensorBoard's files are
sinks. A tracker is a sink outside of the run directory, such as Weights & Biases or
MLflow. It also takes the files of the run when the run ends.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from resnet_jax.config.schema import Config

# How a run ended: it is complete; a signal stopped it, and it can be resumed; an error.
Status = Literal["finished", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class TrackedRun:
  """What a tracker knows about the run when it starts.

  Attributes:
    id: 32 characters, 0-9 and a-f. A run that is resumed from a checkpoint has the same
      id, so that a tracker can continue its own run.
    name: name of the run directory.
    workdir: path of the run directory.
    config: the settings.
    start_step: completed updates of the newest checkpoint; 0 for a new run.
    num_steps: number of updates of the whole run.
  """

  id: str
  name: str
  workdir: str
  config: Config
  start_step: int
  num_steps: int


@runtime_checkable
class MetricSink(Protocol):
  """Takes the metrics of a run, each line of `metrics.jsonl` once.

  The metrics of the last 30 s before a run was killed may come twice, as equal values.
  """

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Takes the metrics of one log or one evaluation.

    Args:
      step: completed updates.
      split: "train", "eval", or "ema" for the average of the parameters.
      values: such as "loss", "top1" and "images_per_s".
    """


@runtime_checkable
class Tracker(MetricSink, Protocol):
  """Shows runs in another program. Only process 0 has trackers."""

  def finish(self, status: Status, files: Mapping[str, Path]) -> None:
    """Called once, after the last `log`.

    Args:
      status: how the run ended.
      files: path in the run directory -> path on this machine, such as "curves.png"
        and the files of the newest checkpoint. Together they are a run directory that
        the package can load. Empty unless the run is finished.
    """


# Starts a tracker for a run; an exception ends the run before its first step.
TrackerFactory = Callable[[TrackedRun], Tracker]
