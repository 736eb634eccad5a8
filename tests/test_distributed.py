"""Several processes train one run; they are real processes on this machine."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import cluster_files
import jax
import numpy as np
import pytest
from rich.console import Console
from running import train_config

from resnet_jax.config import serialization
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.run_dir import read_config
from resnet_jax.runtime import launchers, processes
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import in_process_order
from resnet_jax.training.experiment import Experiment

ROOT = Path(__file__).parents[1]
LONG = pytest.mark.skipif("CHAOS_RUNS" not in os.environ, reason="set CHAOS_RUNS")
SETTINGS = [
  "--no-report",
  "--config.data.name=synthetic",
  "--config.data.image_size=8",
  "--config.data.num_examples=70",  # 4 batches of 16, and 6 more.
  "--config.batch_size=16",
  # A small network, because each process compiles it.
  "--config.model.factory=own_parts:normed_network",
  "--config.optim.warmup_epochs=0",
  # At 0.05 a change of 1e-7 grows to 0.03 within 20 steps, on one device too.
  "--config.optim.learning_rate=0.005",
  "--config.steps_per_call=2",
  "--config.log_every_steps=2",
  "--config.eval_every_steps=20",
]


def free_port() -> int:
  with socket.socket() as sock:
    sock.bind(("localhost", 0))
    return sock.getsockname()[1]


@contextlib.contextmanager
def launched(count: int, *args: str, own: dict[int, str] | None = None):
  """Yields `count` processes of one run; they end with the context.

  Args:
    count: number of processes.
    *args: flags of all processes.
    own: number of a process -> an extra flag for this process only.
  """
  port = free_port()
  command = [sys.executable, str(ROOT / "train.py"), *SETTINGS, *args]
  flags = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
  processes = [
    subprocess.Popen(
      [*command, *flags, f"--process_id={i}", *filter(None, [(own or {}).get(i)])],
      env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def variables_of(workdir) -> list[np.ndarray]:
  with CheckpointStore(workdir) as store:
    return jax.tree.leaves(store.restore_model("latest")[1])


def last_evaluation(workdir) -> dict:
  *_, last = (workdir / "metrics.jsonl").open()
  return json.loads(last)


# The launch in docs/clusters.md that needs one machine only.
(ONE_MACHINE,) = re.findall(
  r"```bash\n(for .*?)```", (ROOT / "docs/clusters.md").read_text(), re.S
)


@contextlib.contextmanager
def launched_as_documented(*args: str):
  """Yields the shell that runs the launch of docs/clusters.md."""
  words = [sys.executable, str(ROOT / "train.py"), *SETTINGS, *args]
  block = ONE_MACHINE.replace(
    "resnet-jax train --config.num_epochs=2 --workdir=runs/two", " ".join(words)
  )
  block = re.sub(r"localhost:\d+", f"localhost:{free_port()}", block)
  shell = subprocess.Popen(
    ["bash", "-c", block],
    env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    yield shell
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(shell.pid, signal.SIGKILL)
    shell.communicate()


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def shared(request, tmp_path_factory):
  """A run of 20 steps by several processes; 4 processes shard the optimiser state."""
  workdir = tmp_path_factory.mktemp("shared") / "run"
  args = ["--config.num_steps=20", "--report", f"--workdir={workdir}"]
  if request.param == 4:  # As a cluster of Kubernetes starts them.
    args += ["--config.optim.shard_state=true"]
    pods = cluster_files.jobset(count=4, address=f"localhost:{free_port()}")
    with cluster_files.started(pods, *SETTINGS, *args) as processes:
      out, error = processes[0].communicate(timeout=200)
      out += "".join(other.communicate(timeout=60)[0] for other in processes[1:])
  else:
    args += ["--config.model.factory=", "--config.model.name=resnet8"]
    with launched_as_documented(*args) as shell:
      out, error = shell.communicate(timeout=200)
  assert "done: " in out, error
  return workdir, out, request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The same run by one process, with one device."""

  @functools.cache
  def run(config: str) -> Path:
    workdir = tmp_path_factory.mktemp("whole")
    config = serialization.from_json(config)
    config.optim.shard_state = False
    console = Console(file=io.StringIO())
    train_config(config, str(workdir), jax.devices()[:1], console)
    return workdir

  return run


def test_processes_give_the_parameters_and_counts_of_one(whole, shared):
  workdir, *_ = shared
  whole = whole((workdir / "config.json").read_text())
  pairs = zip(variables_of(workdir), variables_of(whole), strict=True)
  for ours, expected in pairs:
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
  ours, expected = last_evaluation(workdir), last_evaluation(whole)
  assert ours["count"] == expected["count"] == 70
  assert ours["top1"] == expected["top1"] and ours["top5"] == expected["top5"]
  scores = json.loads((workdir / "report" / "metrics.json").read_text())["scores"]
  for name in ("top1", "top5", "loss", "count"):  # The report is as exact.
    assert scores[name] == pytest.approx(expected[name], rel=1e-5)


def test_only_the_first_process_speaks(shared):
  _, out, count = shared
  for text in (
    f"on {count} cpu devices, xla kernels\n",
    "\nrun: /",
    "step 18/20 ",
    "\ndone: top-1",
  ):
    assert out.count(text) == 1, text


def test_a_checkpoint_of_processes_is_restored_on_other_numbers_of_devices(shared):
  workdir, *_ = shared
  config = read_config(workdir)
  states = []
  for devices in (1, 2, 3):
    config = dataclasses.replace(config, batch_size=5 * devices)
    experiment = Experiment.create(config, devices=jax.devices()[:devices])
    with CheckpointStore(str(workdir)) as store:
      states.append(
        store.restore_latest(experiment.state_init(jax.random.key(9)), show=pytest.fail)
      )
    assert int(states[-1].step) == 20
    assert len(states[-1].step.sharding.device_set) == devices
  for state in states[1:]:
    trees = (
      (states[0].opt_state, states[0].variables),
      (state.opt_state, state.variables),
    )
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize(
  ("flag", "text"),
  [
    ("--config.data.num_examples=0", "config.data.num_examples=0 must be > 0"),
    (
      # Refused before the processes create arrays of different shapes.
      "--config.batch_size=64",
      "process 1 has config.batch_size=64 and process 0 has 16; start all with the "
      "same flags and configs",
    ),
    # With other calls of the compiled step, a signal would leave processes waiting.
    (
      "--profile=2:5",
      "process 1 has profile=(2, 5) and process 0 has profile=None; give all processes "
      "the same",
    ),
    (
      "--report",
      "process 1 has --report=True and process 0 has --report=False; give all "
      "processes the same",
    ),
  ],
)
def test_an_error_in_one_process_ends_all_with_that_error(tmp_path, flag, text):
  own = {1: flag}
  with launched(2, f"--workdir={tmp_path / 'run'}", own=own) as processes:
    _, own_error = processes[1].communicate(timeout=60)
    ended = time.monotonic()
    _, error = processes[0].communicate(timeout=60)
    assert time.monotonic() - ended < 10
    assert [process.returncode for process in processes] == [1, 2]
  assert f"error: process 1: {text}\n" in error
  assert f"error: {text}\n" in own_error
  assert not (tmp_path / "run").exists()


def wait_for_training(process) -> None:
  while not process.stdout.readline().startswith("step "):
    assert process.poll() is None, process.stderr.read()


@pytest.mark.parametrize(
  ("killed", "said"),
  [
    (1, "process 1 has not been heard of for"),
    # This takes as long as the first case, and runs almost the same code.
    pytest.param(0, "process 0 is gone; its own output may", marks=LONG),
  ],
)
def test_a_killed_process_ends_the_others(tmp_path, killed, said):
  args = [f"--workdir={tmp_path}", "--config.num_steps=100000"]
  with launched(2, *args) as processes:
    wait_for_training(processes[0])
    processes[killed].kill()
    start, other = time.monotonic(), processes[1 - killed]
    _, error = other.communicate(timeout=60)
    assert other.returncode == 1
    assert time.monotonic() - start < 30
  (line,) = [line for line in error.split("\n") if line.startswith("error: ")]
  assert line.startswith(f"error: {said}")


def test_rows_go_to_the_processes_in_their_order():
  """In the wiring order of a 4x4 slice, the chips of a host are not neighbours."""
  hosts = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
  chips = [
    Mock(spec=jax.Device, id=i, process_index=host) for i, host in enumerate(hosts)
  ]
  assert [c.process_index for c in in_process_order(chips)] == sorted(hosts)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("host:1", None, None), "--num-processes and --process-id must be given too"),
    ((None, None, 0), "--coordinator and --num-processes must be given too"),
    (("host", 2, 0), "--coordinator=host must be HOST:PORT"),
    (("host:1", 0, 0), "--num-processes=0 must be > 0"),
    (("host:1", 2, 2), r"--process-id=2 must be in \[0, 1\]"),
  ],
)
def test_wrong_flags_are_named(arguments, message):
  with pytest.raises(ValueError, match=message), processes.connect(*arguments):
    pass


SRUN = {
  "SLURM_JOB_ID": "1",
  "SLURM_STEP_NODELIST": "node[1-4]",
  "SLURM_NTASKS": "4",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0",
}


def test_open_mpi_5_needs_flags(monkeypatch):
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  with pytest.raises(ValueError, match="give --coordinator"), processes.connect():
    pass


@pytest.mark.parametrize(
  ("variables", "expected"),
  [
    ({}, False),
    (SRUN, True),
    (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, False),  # A shell within `salloc`.
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # `sbatch` itself.
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "x"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a"}, False),
  ],
)
def test_launchers_are_known_by_their_variables(monkeypatch, variables, expected):
  for name in list(os.environ):
    if name.startswith(("SLURM_", "OMPI_", "TPU_", "JOB_COMPLETION")):
      monkeypatch.delenv(name)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  place = "10.0.0.1:8476", 2, 0, None
  monkeypatch.setattr(launchers, "_ask_launcher", lambda *args: place)
  monkeypatch.setattr(launchers, "_has_chips", lambda: False)
  assert launchers.find_place(None, None, None) == (place if expected else None)


@pytest.mark.parametrize(
  ("variables", "shown"),
  [
    ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE=2 PMI_RANK=0: "),
    # JAX needs more variables than these.
    ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "--process-id=$SLURM_PROCID"),
    ({"PMIX_RANK": "1"}, "PMIX_RANK=1: "),
    ({"PALS_RANKID": "3", "PALS_SIZE": "4"}, "PALS_SIZE=4 PALS_RANKID=3: "),
    (
      {"WORLD_SIZE": "2", "RANK": "1"},
      "--num-processes=$WORLD_SIZE --process-id=$RANK",
    ),
    ({"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETION_INDEX=1: "),
    ({"ALPS_APP_PE": "1"}, "--num-processes=N --process-id=$ALPS_APP_PE"),
    ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0"}, "HOROVOD_SIZE=2 HOROVOD_RANK=0: "),
    ({"SKYPILOT_NUM_NODES": "2"}, "--num-processes=$SKYPILOT_NUM_NODES"),
    ({"LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "1"}, "--process-id=$LWS_WORKER_"),
    ({"NODE_RANK": "1"}, "--num-processes=N --process-id=$NODE_RANK"),
    ({"FLUX_JOB_SIZE": "8"}, "--num-processes=$FLUX_JOB_SIZE --process-id=I"),
  ],
)
def test_no_process_of_several_trains_alone(monkeypatch, variables, shown):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=re.escape(shown)):
    launchers.find_place(None, None, None)


@pytest.mark.parametrize(
  ("variables", "warned"),
  [
    ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETION_INDEX"),
    ({"PMIX_RANK": "0"}, "PMIX_RANK"),
    ({"ALPS_APP_PE": "0"}, "ALPS_APP_PE"),
    ({"RANK": "0", "LOCAL_RANK": "0"}, "RANK"),
    ({"PMIX_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, ""),
    ({"WORLD_SIZE": "1", "RANK": "0"}, ""),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ""),  # `sbatch` itself.
  ],
)
def test_a_process_0_that_may_not_be_alone_is_warned(
  monkeypatch, capsys, variables, warned
):
  monkeypatch.setattr(launchers, "_is_installed", lambda package: False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert launchers.find_place(None, None, None) is None
  err = capsys.readouterr().err
  if warned:
    flags = f"--coordinator=HOST:PORT --num-processes=N --process-id=${warned}\n"
    assert err.startswith(f"warning: {warned}=0 and ") and err.endswith(flags)
  assert err.count("\n") == bool(warned)


def test_the_variables_of_jax_are_read_and_checked(monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:8476")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  with pytest.raises(UserError, match="JAX_PROCESS_ID must be given too"):
    launchers.find_place(None, None, None)
  monkeypatch.setenv("JAX_PROCESS_ID", "1")
  place = launchers.find_place(None, None, None)
  assert place == ("10.0.0.1:8476", 2, 1, None)
  assert launchers.find_place(None, 4, None) == ("10.0.0.1:8476", 4, 1, None)
  monkeypatch.setenv("JAX_PROCESS_ID", "2")
  with pytest.raises(UserError, match=r"JAX_PROCESS_ID=2 must be in \[0, 1\]"):
    launchers.find_place(None, None, None)


def test_a_port_that_is_taken_is_one_line():
  with socket.create_server(("", 0)) as other:
    address = f"127.0.0.1:{other.getsockname()[1]}"
    message = r"cannot listen at .*Address already in use"
    with pytest.raises(OSError, match=message), processes.connect(address, 2, 0):
      pass


def test_a_silent_process_is_named(monkeypatch):
  """A process that is stopped keeps its connections."""
  monkeypatch.setattr("jax._src.distributed.global_state.client", Mock())
  peers = processes._Peers(3, 0, threading.Event())
  end = Mock()
  monkeypatch.setattr(peers, "_end", end)
  for poll in range(59):
    peers._check_silence(1, poll)
    peers._check_silence(2, "3")
  end.assert_not_called()
  for _ in range(2):
    peers._check_silence(1, 59)
    peers._check_silence(2, "3")
  end.assert_called_once()
  assert "process 2 has not been heard of for 30 s" in end.call_args.args[0]
