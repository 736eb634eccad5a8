"""MLflow as a tracker."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_jax.config.fields import flatten
from resnet_jax.runs.trackers.tracker import Status, TrackedRun
from resnet_jax.runtime.terminal import show

_TAG = "resnet_jax.id"  # Finds the run of MLflow when our run is resumed.
_MOST_PARAMS = 100  # MLflow's limit for one call.
_STATUS: dict[Status, str] = {
  "finished": "FINISHED",
  "stopped": "KILLED",
  "failed": "FAILED",
}


class MlflowTracker:
  """A run of MLflow, which has the id of our run as a tag.

  MLflow cannot change a parameter. If a resumed run has other settings, the parameters
  keep their first values, and the uploaded config.json has the last ones.
  """

  def __init__(self, run: TrackedRun):
    """Starts or continues a run on the server of MLFLOW_TRACKING_URI.

    If MLFLOW_RUN_ID is set, the run with this id continues.
    """
    # MLflow itself tries seven times, which takes minutes. `BackgroundTracker` tries
    # again, too.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient
    from mlflow.entities import Param

    self._client = MlflowClient()
    if given := os.environ.get("MLFLOW_RUN_ID"):
      found = [self._client.get_run(given)]
      experiment = str(found[0].info.experiment_id)
    else:
      experiment = _open_experiment(self._client)
      found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'")
    if found:
      self._id, known = found[0].info.run_id, found[0].data.params
      self._client.update_run(self._id, status="RUNNING")
    else:
      self._id, known = self._create(experiment, run), {}
    params = [
      Param(path, str(value))
      for path, value in flatten(run.config).items()
      if path not in known
    ]
    for i in range(0, len(params), _MOST_PARAMS):
      self._client.log_batch(self._id, params=params[i : i + _MOST_PARAMS])
    if (server := self._client.tracking_uri).startswith("http"):
      show(f"mlflow: {server}/#/experiments/{experiment}/runs/{self._id}")

  def _create(self, experiment: str, run: TrackedRun) -> str:
    from mlflow.tracking.context import registry

    # The tags of MLflow's own `start_run`: user, command, git commit.
    tags = registry.resolve_tags({_TAG: run.id})
    made = self._client.create_run(experiment, tags=tags, run_name=run.name)
    return str(made.info.run_id)

  def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Adds values such as "train/loss"."""
    from mlflow.entities import Metric

    now = round(1000 * time.time())  # Milliseconds.
    metrics = [
      Metric(_as_name(f"{split}/{name}"), float(value), now, step)
      for name, value in values.items()
    ]
    self._client.log_batch(self._id, metrics=metrics)

  def finish(self, status: Status, files: Mapping[str, Path]) -> None:
    """Uploads the files, and sets the status of the run."""
    try:
      for name, path in files.items():
        folder, _, last = name.rpartition("/")
        self._client.log_artifact(self._id, str(path), folder or None)
        if folder.endswith(f"/{last}"):
          # MLflow does not download a folder whose only file has the folder's name.
          self._client.log_text(self._id, "", f"{folder}/.keep")
    finally:
      self._client.set_terminated(self._id, _STATUS[status])


def _open_experiment(client: Any) -> str:
  """Returns the id of the experiment that MLflow's variables name; may create it."""
  from mlflow.exceptions import MlflowException

  if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
    return given
  name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "resnet_jax"
  if (found := client.get_experiment_by_name(name)) is None:
    try:
      return str(client.create_experiment(name))
    except MlflowException:  # Another run has just created it.
      if (found := client.get_experiment_by_name(name)) is None:
        raise
  return str(found.experiment_id)


def _as_name(name: str) -> str:
  """Replaces characters that MLflow does not allow in the name of a metric."""
  return re.sub(r"[^\w\-. :/]", "_", name)
