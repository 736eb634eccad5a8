"""Reads from the environment how many processes a run has, and where they are."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import jax

from resnet_jax.runtime.errors import UserError

# How long a process waits for the others to start.
CONNECT_TIMEOUT_S = 300
# The flags, and the variables that replace omitted flags.
_FLAGS = {
  "--coordinator": "JAX_COORDINATOR_ADDRESS",
  "--num-processes": "JAX_NUM_PROCESSES",
  "--process-id": "JAX_PROCESS_ID",
}
# Variables by which other launchers tell everything: host and port of process 0, number
# of processes, index of this one.
_COMPLETE = (
  # JAXJob of Kubeflow's training operator: pkg/controller.v1/jax/envvar.go
  ("COORDINATOR_ADDRESS", "COORDINATOR_PORT", "NUM_PROCESSES", "PROCESS_ID"),
  # xpk with GPUs: src/xpk/core/docker_resources.py
  ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT", "NNODES", "NODE_RANK"),
)
# The variables that JAX itself reads.
_SLURM = "JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"
_OPEN_MPI = "OMPI_MCA_orte_hnp_uri"
# The variables that launchers set: the number of processes, and the index of this one,
# from 0. Variables that cover a single host come last.
_LAUNCHERS = (
  ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # If JAX lacks other variables.
  ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
  ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),  # MVAPICH
  ("FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
  ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),  # jsrun
  ("PMI_SIZE", "PMI_RANK"),  # MPICH, Intel MPI
  ("PALS_SIZE", "PALS_RANKID"),
  ("PMIX_SIZE", "PMIX_RANK"),
  ("", "ALPS_APP_PE"),  # aprun; it sets no number of processes.
  ("WORLD_SIZE", "RANK"),  # torchrun
  ("HOROVOD_SIZE", "HOROVOD_RANK"),
  ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"),
  ("LWS_GROUP_SIZE", "LWS_WORKER_INDEX"),  # LeaderWorkerSet of Kubernetes
  ("JOB_COMPLETIONS", "JOB_COMPLETION_INDEX"),  # Kubernetes
  ("NNODES", "NODE_RANK"),  # Lightning, Azure
  ("LOCAL_WORLD_SIZE", "LOCAL_RANK"),  # torchrun
  ("MPI_LOCALNRANKS", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
)


def find_place(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int, Any] | None:
  """Finds the place of this process in a run.

  The values come from the arguments, else from JAX's variables, which Kubeflow Trainer
  and our files for JobSets set too, else from the launcher.

  Returns:
    Address of process 0, number of processes, index of this process, and its devices
    in JAX's form; None if the process is alone.
  """
  values: dict[str, Any] = dict(
    zip(_FLAGS, (coordinator, num_processes, process_id), strict=True)
  )
  by_flags = any(value is not None for value in values.values())
  for flag, variable in _FLAGS.items():
    if values[flag] is None:
      values[flag] = os.environ.get(variable) or None
  if not by_flags:
    values = {_FLAGS[flag]: value for flag, value in values.items()}
  missing = [name for name, value in values.items() if value is None]
  if not missing:
    return (*_check(values), None)
  if not by_flags and (complete := _complete_variables()):
    return (*_check(complete), None)
  launched = _is_launched()
  if not by_flags and (launched or _has_chips()):
    return _ask_launcher(values, launched)
  if len(missing) < len(values):
    raise UserError(f"{' and '.join(missing)} must be given too: all three or none")
  _refuse_launchers()
  return None


def check_alone(command: str) -> None:
  """Raises `UserError` if a launcher started several processes of a command."""
  try:
    if jax.distributed.is_initialized():
      is_alone = jax.process_count() == 1
    else:
      place = find_place(None, None, None)
      is_alone = place is None or place[1] == 1
  except UserError:  # Several, but they cannot find each other.
    is_alone = False
  if not is_alone:
    raise UserError(
      f"resnet-jax {command} runs in one process, but a launcher or JAX_NUM_PROCESSES "
      "started several; start it once, without them"
    )


def check_same_place(num_processes: int | None, process_id: int | None) -> None:
  """Raises `UserError` if the arguments differ from the connection of this process."""
  for flag, given, actual in (
    ("--num-processes", num_processes, jax.process_count()),
    ("--process-id", process_id, jax.process_index()),
  ):
    if given not in (None, actual):
      raise UserError(
        f"{flag}={given} differs from {actual}, the value with which this process was "
        "connected by jax.distributed.initialize; leave the flag out"
      )


def _complete_variables() -> dict[str, str]:
  """Returns variables of `_COMPLETE` as `_check` takes them; {} if none is complete."""
  for names in _COMPLETE:
    if all(os.environ.get(name) for name in names):
      host, port, count, index = (os.environ[name] for name in names)
      return {names[0]: f"{host}:{port}", names[2]: count, names[3]: index}
  return {}


def _check(values: dict[str, Any]) -> tuple[str, int, int]:
  """Checks the three flags or variables, as {name: value}, and returns the values."""
  (name, address), *numbers = values.items()
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UserError(f"{name}={address} must be HOST:PORT, such as 10.0.0.1:8476")
  for name, value in numbers:
    if not str(value).lstrip("-").isdecimal():
      raise UserError(f"{name}={value} must be a whole number")
  (count_name, count), (name, index) = ((name, int(value)) for name, value in numbers)
  if count < 1:
    raise UserError(f"{count_name}={count} must be > 0")
  if not 0 <= index < count:
    raise UserError(
      f"{name}={index} must be in [0, {count - 1}], because {count_name}={count}"
    )
  return address, count, index


def _is_launched() -> bool:
  """Whether a launcher that JAX knows started several processes.

  It only reads variables. `jax.distributed.initialize` would fail without a launcher,
  and it would ask the network about some launchers.
  """
  variables = os.environ
  return (
    (
      all(f"SLURM_{name}" in variables for name in _SLURM)
      and _number("SLURM_STEP_NUM_TASKS") > 1
    )
    or (_OPEN_MPI in variables and _number("OMPI_COMM_WORLD_SIZE") > 1)
    or ("JOB_COMPLETION_INDEX" in variables and _is_installed("kubernetes"))
    or "," in variables.get("TPU_WORKER_HOSTNAMES", "")
  )


def _number(variable: str) -> int:
  """Returns the number in a variable; 0 if it has none."""
  text = os.environ.get(variable, "")
  return int(text) if text.isdecimal() else 0


def _refuse_launchers() -> None:
  """Raises `UserError` if a launcher that JAX cannot ask started several processes.

  Each process would train the same network, or one would train alone. If the launcher
  sets no number of processes, process 0 only gets a warning, as it may be the only one.
  """
  for size, rank in _LAUNCHERS:
    if _number(size) > 1 or _number(rank) > 0:
      seen = [name for name in (size, rank) if name in os.environ]
      shown = " ".join(f"{name}={os.environ[name]}" for name in seen)
      count, index = (
        f"${name}" if name in seen else default
        for name, default in ((size, "N"), (rank, "I"))
      )
      raise UserError(
        f"{shown}: this is one of several processes, but JAX cannot find the others by "
        f"these variables; give --coordinator=HOST:PORT --num-processes={count} "
        f"--process-id={index}, or unset {' and '.join(seen)} to let each train alone"
      )
  if any(size in os.environ for size, _ in _LAUNCHERS):
    return
  for _, rank in _LAUNCHERS[1:]:  # A script of `sbatch` also has SLURM_PROCID=0.
    if os.environ.get(rank) == "0":
      text = (
        f"warning: {rank}=0 and no variable gives the number of processes: this one "
        "trains alone; if there are others, give --coordinator=HOST:PORT "
        "--num-processes=N "
        f"--process-id=${rank}"
      )
      print(text, file=sys.stderr)
      return


def _ask_launcher(
  values: dict[str, Any], launched: bool
) -> tuple[str, int, int, Any] | None:
  """Asks JAX for the place that the launcher gave this process; see `find_place`."""
  address, *numbers = values.values()
  # JAX has no public function for the address of process 0 before it connects.
  clusters: Any = jax._src.clusters
  try:
    place = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      address,
      *(None if number is None else int(number) for number in numbers),
      None,
      None,
      CONNECT_TIMEOUT_S,
    )
  except RuntimeError as error:
    raise OSError(f"the other processes cannot be found: {error}") from error
  except (KeyError, ValueError) as error:
    raise UserError(f"the launcher's environment is wrong: {error!r}") from error
  if None not in place[:3]:
    return tuple(place)
  if launched:
    raise UserError(
      "the launcher's environment is not enough for JAX to find the other processes; "
      "give --coordinator, --num-processes and --process-id"
    )
  return None  # A TPU host outside of a slice.


def _is_installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def _has_chips() -> bool:
  """Whether this may be a host of a TPU slice, which only the network can tell."""
  paths = Path("/dev/accel0"), Path("/dev/vfio/0")
  platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
  return (
    "tpu" in platforms
    and _is_installed("libtpu")
    and any(path.exists() for path in paths)
  )
