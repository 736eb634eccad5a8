"""Starts the processes that the files in examples/clusters/ describe, as launchers do.

The commands and variables come from the files. On this machine, other settings are
appended to a command; they replace those of the file.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "clusters"
TRAIN = [sys.executable, str(ROOT / "train.py")]
ENV = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
# The settings of the files are for ImageNet.
OTHER_DATA = ["--config=digits", "--config.data.dir="]


class Pod(NamedTuple):
  """A process of Kubernetes: its command and the variables that are set for it."""

  command: list[str]
  env: dict[str, str]


@contextlib.contextmanager
def started(pods: list[Pod], *args: str):
  """Yields the processes of `pods`, with more arguments; they end with the context."""
  processes = []
  for command, env in pods:
    assert command[:2] == ["resnet-jax", "train"]
    processes.append(
      subprocess.Popen(
        [*TRAIN, *command[2:], *OTHER_DATA, *args],
        env=os.environ | ENV | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def jobset(count: int = 0, address: str = "") -> list[Pod]:
  """Returns the pods of jobset.yaml, with its number and address or others."""
  spec = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
  name = spec["metadata"]["name"]
  (job,) = spec["spec"]["replicatedJobs"]
  inner = job["template"]["spec"]
  (container,) = inner["template"]["spec"]["containers"]
  variables = {item["name"]: item for item in container["env"]}
  host = f"{name}-{job['name']}-0-0.{name}"  # Named by the controller of JobSet.
  assert variables["JAX_COORDINATOR_ADDRESS"]["value"].startswith(f"{host}:")
  assert inner["completions"] == inner["parallelism"]
  assert str(inner["completions"]) == variables["JAX_NUM_PROCESSES"]["value"]
  pods = []
  for index in range(count or inner["completions"]):
    # The annotation of an indexed Job.
    known = {"metadata.annotations['batch.kubernetes.io/job-completion-index']": index}
    env = {
      key: item.get("value") or str(known[item["valueFrom"]["fieldRef"]["fieldPath"]])
      for key, item in variables.items()
    }
    if count:
      env |= {"JAX_NUM_PROCESSES": str(count), "JAX_COORDINATOR_ADDRESS": address}
    # Kubernetes sets this one for each indexed Job.
    env["JOB_COMPLETION_INDEX"] = str(index)
    pods.append(Pod(container["command"] + container["args"], env))
  return pods


def kubeflow(count: int = 0, address: str = "") -> list[Pod]:
  """Returns the pods of kubeflow.yaml, with its number and address or others.

  The variables are those that Kubeflow Trainer 2 sets; see EnforceMLPolicy in its
  pkg/runtime/framework/plugins/jax/jax.go.
  """
  runtime, job = yaml.safe_load_all((FOLDER / "kubeflow.yaml").read_text())
  reference, trainer = job["spec"]["runtimeRef"], job["spec"]["trainer"]
  assert reference == {"kind": runtime["kind"], "name": runtime["metadata"]["name"]}
  assert "jax" in runtime["spec"]["mlPolicy"]
  (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
  labels = replicated["template"]["metadata"]["labels"]
  assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
  (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
  assert replicated["name"] == container["name"] == "node"
  name, number = job["metadata"]["name"], count or trainer["numNodes"]
  return [
    Pod(
      trainer["command"] + trainer["args"],
      {
        "JAX_NUM_PROCESSES": str(number),
        "JAX_PROCESS_ID": str(index),
        "JAX_COORDINATOR_ADDRESS": address or f"{name}-node-0-0.{name}:29500",
        "JOB_COMPLETION_INDEX": str(index),
      },
    )
    for index in range(number)
  ]


def add_program(folder: Path, name: str, script: str) -> None:
  """Writes a shell script that scripts find as `name` if `folder` is in $PATH."""
  path = folder / name
  path.write_text(f"#!/bin/bash\n{script}\n")
  path.chmod(0o755)
