"""Several processes as one run: how they find each other, and how they end together.

JAX connects the processes; what it lacks is a way to say why one of them failed. The
others would wait for it in a collective operation, some of them for ever.
"""

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils

from resnet_jax.runtime.errors import UserError, show_error

# A process that vanished without a word is noticed after this time.
HEARTBEAT_TIMEOUT_S = 30
_CONNECT_TIMEOUT_S = 300
_POLL_S = 0.5
_KEY = "resnet_jax/error"
# What JAX itself looks for.
_SLURM = "JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"
_OPEN_MPI = "OMPI_MCA_orte_hnp_uri"


@runtime_checkable
class _Store(Protocol):
  """What JAX's processes share, as far as it is used here."""

  def key_value_set(self, key: str, value: str) -> None: ...

  def key_value_try_get(self, key: str) -> str:
    """Raises `JaxRuntimeError` if there is none."""
    ...


@contextlib.contextmanager
def connect(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Iterator[None]:
  """Connects the processes of a run; an error in one of them ends all within 10 s.

  Without arguments, the launcher's environment is asked: Slurm, Open MPI 4, Kubernetes
  (indexed Jobs and JobSets), GKE and Cloud TPU; without a launcher, the process is
  alone. Before any other use of JAX. If some processes never come, JAX aborts those
  that wait for them after 5 minutes.

  Args:
    coordinator: HOST:PORT, where process 0 listens; the others need `num_processes`
      and `process_id` too, and all are to be given or none.
    num_processes: of the run.
    process_id: of this one, from 0.

  Raises:
    ValueError: arguments that are wrong or incomplete, or a launcher that does not
      tell where process 0 is.
    OSError: process 0 cannot listen.
  """
  given = {
    "--coordinator": coordinator,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  if missing := [flag for flag, value in given.items() if value is None]:
    if len(missing) < len(given):
      raise UserError(f"{' and '.join(missing)} must be given too: all three or none")
    if not (_is_launched() or _has_chips()):
      yield
      return
  else:
    assert coordinator is not None
    assert num_processes is not None and process_id is not None
    _check(coordinator, num_processes, process_id)
  where = coordinator or "the address that the launcher's environment gives"
  text = f"waiting at {where} for the other processes, {_CONNECT_TIMEOUT_S} s at most"
  notice = threading.Timer(10, print, [text], {"file": sys.stderr, "flush": True})
  notice.start()
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=_CONNECT_TIMEOUT_S,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
    )
  except RuntimeError as error:  # Whatever the network says.
    raise OSError(f"cannot connect at {where}: {error}") from error
  except ValueError as error:  # A TPU host that is no part of a slice is alone.
    if _is_launched():
      raise UserError(f"the launcher's environment is not enough: {error}") from error
  finally:
    notice.cancel()
  with _ending_together() if jax.process_count() > 1 else contextlib.nullcontext():
    yield


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal():
    raise UserError(
      f"--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:8476"
    )
  if num_processes < 1:
    raise UserError(f"--num_processes={num_processes} must be > 0")
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id={process_id} must be in [0, {num_processes - 1}], by "
      f"--num_processes={num_processes}"
    )


def _is_launched() -> bool:
  """Whether a launcher that JAX knows started several processes.

  `jax.distributed.initialize` fails where there is none, and asks the network about
  some; so only these variables are looked at.

  Raises:
    ValueError: the launcher is Open MPI 5, which does not tell where process 0 is.
  """
  variables = os.environ

  def several(name: str) -> bool:
    return variables.get(name, "").isdecimal() and int(variables[name]) > 1

  if several("OMPI_COMM_WORLD_SIZE") and _OPEN_MPI not in variables:
    raise UserError(
      f"Open MPI does not tell where process 0 is ({_OPEN_MPI} is not set); give "
      "--coordinator=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
      "--process_id=$OMPI_COMM_WORLD_RANK"
    )
  return (
    # The step's own number: within `salloc` that of the allocation is set too.
    (
      all(f"SLURM_{name}" in variables for name in _SLURM)
      and several("SLURM_STEP_NUM_TASKS")
    )
    or several("OMPI_COMM_WORLD_SIZE")
    or ("JOB_COMPLETION_INDEX" in variables and _is_installed("kubernetes"))
    or "," in variables.get("TPU_WORKER_HOSTNAMES", "")
  )


def _is_installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def _has_chips() -> bool:
  """Whether this may be a host of a TPU slice, of which only the network knows."""
  paths = Path("/dev/accel0"), Path("/dev/vfio/0")
  platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
  return (
    "tpu" in platforms
    and _is_installed("libtpu")
    and any(path.exists() for path in paths)
  )


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
  # The store that JAX's processes share has no public name; Orbax uses it like this.
  shared: Any = jax._src.distributed
  store: _Store = shared.global_state.client
  done, told = threading.Event(), threading.Event()
  threading.Thread(target=_watch, args=(store, done, told), daemon=True).start()
  try:
    yield
    # None leaves before all have done all, so that a late error too ends all.
    multihost_utils.sync_global_devices("all is done")
  except BaseException as error:
    if isinstance(error, SystemExit) and not error.code:
      raise
    status, reason = 1, error
    if isinstance(error, SystemExit):  # `errors.fail` has printed its reason.
      status, reason = int(str(error.code)), error.__context__ or error
    elif isinstance(error, jax.errors.JaxRuntimeError) and _is_of_network(error):
      time.sleep(2 * _POLL_S)  # Whose end it is may be known in a moment.
      if not told.is_set():
        reason = OSError(f"another process is gone; its own output says why ({error})")
        show_error(reason)
    else:
      sys.excepthook(type(error), error, error.__traceback__)
    done.set()
    text = str(reason) or type(reason).__name__
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another was the first.
      store.key_value_set(_KEY, f"process {jax.process_index()}: {text}")
    _exit(status)
  finally:
    done.set()


def _is_of_network(error: Exception) -> bool:
  """Whether a collective operation failed; Gloo's errors have the code UNKNOWN."""
  code = getattr(error, "error_code_string", "")
  return code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN")


def _watch(store: _Store, done: threading.Event, told: threading.Event) -> None:
  """Ends this process once another one has failed."""
  while not done.wait(_POLL_S):
    try:
      text = store.key_value_try_get(_KEY)
    except jax.errors.JaxRuntimeError:  # Nothing is there.
      continue
    told.set()
    if jax.process_index() == 0:
      show_error(text)
    _exit(1)


def _exit(status: int) -> None:
  """Ends without JAX's farewell, which would wait for the processes that failed."""
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    time.sleep(4 * _POLL_S)  # The store that the others look into is here.
  os._exit(status)
