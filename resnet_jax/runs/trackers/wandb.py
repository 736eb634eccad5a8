"""Weights & Biases as a tracker."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_jax.runs.trackers.tracker import Status, TrackedRun
from resnet_jax.runtime.buckets import is_remote


class WandbTracker:
  """A run of Weights & Biases, with the id of our run.

  W&B drops values at steps below its last one, which a resumed run may log. So the
  x-axis is a metric named "step", and not W&B's own counter.
  """

  def __init__(self, run: TrackedRun):
    """Starts or continues the W&B run. The variables WANDB_... override our values."""
    import wandb

    ours = {
      "project": ("WANDB_PROJECT", "resnet_jax"),
      "name": ("WANDB_NAME", run.name),
      "id": ("WANDB_RUN_ID", run.id),
      "resume": ("WANDB_RESUME", "allow"),
      # A remote run directory cannot hold W&B's local files.
      "dir": ("WANDB_DIR", None if is_remote(run.workdir) else run.workdir),
    }
    given: dict[str, Any] = {
      name: value for name, (variable, value) in ours.items() if not _is_set(variable)
    }
    self._run = wandb.init(**given)
    settings = dataclasses.asdict(run.config)
    self._run.config.update(settings, allow_val_change=True)
    self._run.define_metric("step", hidden=True)
    self._run.define_metric("*", step_metric="step")

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Adds values such as "train/loss"."""
    named = {f"{split}/{name}": value for name, value in values.items()}
    self._run.log({**named, "step": step})

  def finish(self, status: Status, files: Mapping[str, Path]) -> None:
    """Shows the curves and the report, and uploads the files as a model artifact."""
    import wandb

    shown: dict[str, Any] = {}
    if path := files.get("curves.png"):
      shown["curves"] = wandb.Image(str(path))
    if path := files.get("report/report.html"):
      shown["report"] = wandb.Html(str(path))
    if shown:
      self._run.log(shown)
    if files:
      artifact = wandb.Artifact(f"run-{self._run.id}", type="model")
      for name, path in files.items():
        artifact.add_file(str(path), name)
      self._run.log_artifact(artifact)
    if status == "stopped":  # With an exit code, W&B shows the state "preempted".
      self._run.mark_preempting()
    self._run.finish(exit_code=int(status != "finished"))


def _is_set(variable: str) -> bool:
  return bool(os.environ.get(variable))
