"""The files in examples/clusters/ start processes that find each other and train.

tests/test_distributed.py starts the four pods of jobset.yaml. The test of Ray needs
`pip install '.[ray]'`. SkyPilot's and xpk's commands are not started here: their
arguments and variables are compared with the place of the process in the run.
"""

import os
import re
import signal
import subprocess
import sys

import cluster_files
import jax
import numpy as np
import pytest
import yaml
from cluster_files import ENV, FOLDER, OTHER_DATA, ROOT, TRAIN, add_program
from running import train_config
from test_distributed import SETTINGS, free_port, variables_of, wait_for_training

from resnet_jax.cli.main import create_parser
from resnet_jax.cli.settings import load_config
from resnet_jax.runtime import launchers, processes
from resnet_jax.runtime.errors import UserError

STEPS = "--config.num_steps=20"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The parameters of the same run by one process, with one device."""
  workdir = tmp_path_factory.mktemp("whole")
  settings = [x for x in [*SETTINGS, STEPS] if x.startswith("--config.")]
  train_config(load_config("digits", settings), str(workdir), jax.devices()[:1])
  return variables_of(workdir)


def check_equal(workdir, whole) -> None:
  for ours, expected in zip(variables_of(workdir), whole, strict=True):
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def finish(started) -> str:
  """Waits for processes; returns what they printed."""
  outputs = [process.communicate(timeout=200) for process in started]
  assert [process.returncode for process in started] == [0] * len(started), outputs
  return "".join(out for out, _ in outputs)


def test_pods_of_kubeflow_give_the_parameters_of_one_process(tmp_path, whole):
  pods = cluster_files.kubeflow(count=2, address=f"localhost:{free_port()}")
  with cluster_files.started(
    pods, *SETTINGS, STEPS, f"--workdir={tmp_path}"
  ) as started:
    assert finish(started).count("on 2 cpu devices") == 1
  check_equal(tmp_path, whole)


CONNECTED = """
import sys
import jax

address, index, workdir, *settings = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))

from resnet_jax import Experiment, train
from resnet_jax.cli.main import main
from resnet_jax.cli.settings import load_config

train(Experiment.create(load_config("digits", settings)), workdir)
main(["train", f"--workdir={workdir}", "--no-report", "--trust-code"])
"""


def test_processes_that_are_connected_already_train_and_resume(tmp_path, whole):
  """By a Python call, then by the command, which resumes the run."""
  settings = [x for x in [*SETTINGS, STEPS] if x.startswith("--config.")]
  words = [sys.executable, "-c", CONNECTED, f"localhost:{free_port()}"]
  started = [
    subprocess.Popen(
      [*words, str(i), str(tmp_path), *settings],
      # A launcher's variables do not matter any more.
      env=os.environ | ENV | {"NODE_RANK": str(i), "NNODES": "2"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    assert finish(started).count("done: ") == 1
  finally:
    for process in started:
      process.kill()
  check_equal(tmp_path, whole)


def test_flags_that_differ_from_the_connection_are_refused(monkeypatch):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  with processes.connect(), processes.connect("host:1", 1, 0):
    pass
  message = "--num-processes=2 differs from 1, the value"
  with pytest.raises(UserError, match=message), processes.connect("host:1", 2, 0):
    pass


def test_a_slurm_job_that_reaches_its_time_limit_enters_the_queue_again(tmp_path):
  """`srun` and `scontrol` do here what Slurm's programs do."""
  extra = [*SETTINGS, "--config.num_steps=100000", f"--workdir={tmp_path / 'run'}"]
  words = " ".join([*TRAIN, '"${@:2}"', *OTHER_DATA, *extra])
  add_program(tmp_path, "resnet-jax", f"exec {words}")
  step = "SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2"
  add_program(
    tmp_path,
    "srun",  # Its status is the highest of its tasks.
    f'for i in 0 1; do {step} SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &\n'
    "pids[i]=$!; done\n"
    f'echo "${{pids[1]}}" > {tmp_path}/second; status=0\n'
    "for pid in ${pids[@]}; do\n"
    "wait $pid; ended=$?; if [ $ended -gt $status ]; then status=$ended; fi; done\n"
    "exit $status",
  )
  add_program(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/scontrol')
  activate = tmp_path / "resnet_jax" / ".venv" / "bin" / "activate"
  activate.parent.mkdir(parents=True)
  activate.touch()
  job = str(free_port() % 4096)  # JAX computes the port from the job's number.
  path = f"{tmp_path}:{os.environ['PATH']}"
  shell = subprocess.Popen(
    ["bash", str(FOLDER / "slurm.sbatch")],
    env=os.environ | ENV | {"HOME": str(tmp_path), "PATH": path, "SLURM_JOB_ID": job},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    wait_for_training(shell)
    os.kill(int((tmp_path / "second").read_text()), signal.SIGTERM)
    out, error = shell.communicate(timeout=60)
  finally:
    if shell.poll() is None:
      os.killpg(shell.pid, signal.SIGKILL)
  assert shell.returncode == 75, error
  (number,) = re.findall(r"stopped after step (\d+), which is saved", out)
  assert (tmp_path / "run" / "checkpoints" / number).is_dir()
  assert (tmp_path / "scontrol").read_text() == f"requeue {job}\n"


def test_the_script_of_slurm_has_its_options_first():
  """Slurm needs the first line and ignores options after a command."""
  first, *lines = (FOLDER / "slurm.sbatch").read_text().splitlines()
  assert first == "#!/bin/bash"
  commands = [i for i, line in enumerate(lines) if line and line[0] != "#"]
  assert not any("#SBATCH" in line for line in lines[commands[0] :])


def words_of(script: str, tmp_path, env: dict[str, str], program="resnet-jax"):
  """Returns the arguments with which a shell script calls a program."""
  add_program(tmp_path, program, "printf '%s\\n' \"$@\"")
  env = os.environ | env | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  shell = ["bash", "-c", script]
  return subprocess.check_output(shell, env=env, text=True, timeout=20).splitlines()


def place_of(words: list[str], env: dict[str, str], monkeypatch) -> tuple:
  """Returns the place in the run of a command; also checks its settings."""
  args, settings = create_parser().parse_known_args(words)
  assert load_config(args.config, settings).data.name == "imagenet2012"
  assert args.stopped_status == 75 and args.workdir
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  return launchers.find_place(args.coordinator, args.num_processes, args.process_id)


@pytest.mark.parametrize("file", ["jobset", "kubeflow"])
def test_each_pod_has_its_place(file, monkeypatch):
  hosts = {
    "jobset": "resnet-workers-0-0.resnet:8476",
    "kubeflow": "resnet-node-0-0.resnet:29500",
  }
  for index, (command, env) in enumerate(getattr(cluster_files, file)()):
    found = place_of(command[1:], env, monkeypatch)
    assert found == (hosts[file], 4, index, None)


def test_the_nodes_of_skypilot_have_their_place(tmp_path, monkeypatch):
  task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
  assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == 75
  for rank in range(2):
    env = {
      "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
      "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
      "SKYPILOT_NODE_RANK": str(rank),
    }
    words = words_of(task["run"], tmp_path, env)
    assert place_of(words, env, monkeypatch) == ("10.0.0.1:8476", 2, rank, None)


def test_the_hosts_of_xpk_have_their_place(tmp_path, monkeypatch):
  """With GPUs, for which xpk sets variables; TPUs have those of GKE, as JAX knows."""
  flags = words_of((FOLDER / "xpk.sh").read_text(), tmp_path, {}, program="xpk")
  (command,) = [x.removeprefix("--command=") for x in flags if "--command=" in x]
  assert '"' not in command  # xpk writes it between these.
  assert "--restart-on-exit-codes=1,75" in flags
  words = words_of(f"({command}) & wait", tmp_path, {})
  env = {
    "JAX_COORDINATOR_ADDRESS": "resnet-slice-job-0-0.resnet",
    "JAX_COORDINATOR_PORT": "6002",
    "NNODES": "4",
    "NODE_RANK": "3",
    "JOB_COMPLETION_INDEX": "3",
  }
  place = "resnet-slice-job-0-0.resnet:6002", 4, 3, None
  assert place_of(words, env, monkeypatch) == place
  monkeypatch.setenv("NODE_RANK", "4")
  with pytest.raises(UserError, match=r"NODE_RANK=4 must be in \[0, 3\]"):
    launchers.find_place(None, None, None)


def test_a_jaxjob_of_the_training_operator_has_its_place(monkeypatch):
  env = {
    "COORDINATOR_ADDRESS": "resnet-worker-0",
    "COORDINATOR_PORT": "6666",
    "NUM_PROCESSES": "2",
    "PROCESS_ID": "1",
  }
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  expected = "resnet-worker-0:6666", 2, 1, None
  assert launchers.find_place(None, None, None) == expected
  assert launchers.find_place("host:1", 3, 0) == ("host:1", 3, 0, None)


def test_a_status_that_no_process_can_have_is_refused(capsys):
  with pytest.raises(SystemExit, match="2"):
    create_parser().parse_args(["train", "--stopped-status=300"])
  assert "300 must be a whole number in [0, 255]" in capsys.readouterr().err


def test_two_workers_of_ray_give_the_parameters_of_one_process(tmp_path, whole):
  pytest.importorskip("ray.train.v2.jax")
  settings = [x for x in [*SETTINGS, STEPS] if x.startswith("--config.")]
  workdir = tmp_path / "run"
  subprocess.run(
    [
      *(sys.executable, str(FOLDER / "ray_train.py"), "--workers=2"),
      *(f"--workdir={workdir}", *settings),
    ],
    env=os.environ | ENV | {"RAY_USAGE_STATS_ENABLED": "0"},
    check=True,
    capture_output=True,
    timeout=300,
  )
  check_equal(workdir, whole)


def test_every_file_is_tested_and_described():
  page = (ROOT / "docs" / "clusters.md").read_text()
  tests = (ROOT / "tests" / "test_clusters.py").read_text()
  for path in FOLDER.iterdir():
    if path.is_file():
      assert f"examples/clusters/{path.name})" in page, path
      assert path.name in tests + (ROOT / "tests/cluster_files.py").read_text()
