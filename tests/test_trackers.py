"""Trackers: the real Weights & Biases, MLflow and Aim, and the user's own trackers.

The tests of real programs need `pip install wandb mlflow aim`. Others need nothing.
"""

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
import urllib.request
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from rich.console import Console

from resnet_jax import Experiment, Hook, load, train
from resnet_jax.cli.main import main
from resnet_jax.config import (
  CheckpointConfig,
  Config,
  DataConfig,
  ModelConfig,
  serialization,
)
from resnet_jax.config.fields import flatten
from resnet_jax.runs.run_dir import load_run_config
from resnet_jax.runs.trackers import background, opening
from resnet_jax.runs.trackers.opening import TRACKERS, find_trackers, open_trackers
from resnet_jax.runtime import interruption
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.signals import Stopped
from resnet_jax.training.evaluator import USED

# Metrics that differ when a step is repeated.
TIMES = {"images_per_s", "input_wait"}
TESTS = Path(__file__).parent
# Of the packages that are tracked with.
pytestmark = pytest.mark.filterwarnings("ignore")


def make_config(**changes) -> Config:
  config = Config(
    num_steps=6,
    batch_size=16,
    steps_per_call=1,
    log_every_steps=1,
    kernels="xla",
    eval_every_steps=3,
    model=ModelConfig(factory="own_parts:normed_network"),
    data=DataConfig(name="synthetic", image_size=8, num_examples=70),
    checkpoint=CheckpointConfig(keep=3),
  )
  return dataclasses.replace(config, **changes)


def run(config, workdir, **kwargs):
  experiment = Experiment.create(config, devices=jax.devices()[:1])
  return train(experiment, str(workdir), console=Console(file=io.StringIO()), **kwargs)


def lines_of(workdir) -> list[tuple[int, str, dict]]:
  """Returns (step, split, values) of each line of metrics.jsonl."""
  found = []
  for line in (Path(workdir) / "metrics.jsonl").open():
    values = json.loads(line)
    del values["epoch"]
    found.append((values.pop("step"), values.pop("split"), values))
  return found


class Memory:
  """A tracker that keeps what it gets."""

  made: ClassVar[list["Memory"]] = []

  def __init__(self, run):
    Memory.made.append(self)
    self.run, self.lines, self.end = run, [], None

  def log(self, step, split, values):
    self.lines.append((step, split, dict(values)))

  def finish(self, status, files):
    self.end = status, {name: path.read_bytes() for name, path in files.items()}


@pytest.fixture(autouse=True)
def forget():
  Memory.made.clear()


class Fails(Hook):
  """Raises an error at a log."""

  def __init__(self, step, error):
    self.step, self.error = step, error

  def on_log(self, step, values):
    if step == self.step:
      raise self.error


class Late(Memory):
  """A tracker that is added when the run is resumed."""


def test_a_tracker_gets_each_line_once_and_the_files_of_a_finished_run(tmp_path):
  config = make_config(trackers=("test_trackers:Memory",))
  with pytest.raises(KeyError):
    run(config, tmp_path, hooks=[Fails(5, KeyError())])
  run(config, tmp_path, trackers=[Late])  # Repeats steps 4 and 5.
  first, second, late = Memory.made
  assert first.end == ("failed", {})
  assert (first.run.start_step, second.run.start_step) == (0, 3)
  assert first.run.id == second.run.id and first.run.name == tmp_path.name
  expected = lines_of(tmp_path)
  assert late.lines == expected
  places = [line[:2] for line in expected]
  assert [line[:2] for line in first.lines + second.lines] == places
  assert second.lines == expected[len(first.lines) :]
  status, files = second.end
  assert status == "finished" and files == late.end[1]
  assert {"config.json", "curves.png", "metrics.jsonl", "run.json"} < files.keys()
  assert files["config.json"] == (tmp_path / "config.json").read_bytes()
  steps = {name.split("/")[1] for name in files if name.startswith("checkpoints/")}
  assert steps == {"6"}


def test_trackers_of_one_name_all_get_the_metrics(tmp_path, monkeypatch):
  monkeypatch.setattr(opening, "latest_step", lambda workdir: 3)

  def create(name):
    return type(name, (Memory,), {})

  trackers = [create("Sink"), create("Sink"), functools.partial(create("sink"))]
  for _ in range(2):  # The second try has nothing to send.
    with open_trackers(str(tmp_path), make_config(), 6, trackers) as opened:
      for tracker in opened:
        tracker.log(1, "train", {"loss": 1.0})
  assert [len(made.lines) for made in Memory.made] == [1, 1, 1, 0, 0, 0]
  names = {path.name for path in (tmp_path / "trackers").iterdir()}
  assert names == {"id.txt", "Sink.json", "Sink-2.json", "sink-3.json"}


def test_a_run_whose_files_cannot_be_read_ends_as_failed(tmp_path, monkeypatch):
  monkeypatch.setattr(opening, "_local_files", Mock(side_effect=OSError("bucket")))
  opened = open_trackers(str(tmp_path), make_config(), 6, [Memory, Late])
  with pytest.raises(OSError, match="bucket"), opened:
    pass
  assert [made.end for made in Memory.made] == [("failed", {})] * 2


@pytest.mark.parametrize(
  ("was_stopped", "status"), [(True, "stopped"), (False, "failed")]
)
def test_a_process_that_must_end_at_once_finishes_its_trackers(
  tmp_path, was_stopped, status
):
  with open_trackers(str(tmp_path), make_config(), 6, [Memory]):
    interruption.act_before_exit(was_stopped)
    assert Memory.made[0].end == (status, {})
  assert Memory.made[0].end == (status, {})  # Not a second time.
  interruption.act_before_exit(was_stopped=False)  # Of no run.


LAST_HOOK = """
import signal, sys
sys.path.insert(0, sys.argv[1])
import test_trackers as tests

class Signal(tests.Hook):
  def on_end(self, state, metrics):
    signal.raise_signal(signal.SIGTERM)
    print("it went on")

config = tests.make_config(num_steps=2)
try:
  tests.run(config, sys.argv[2], hooks=[Signal()], trackers=[tests.Memory])
except tests.Stopped as stopped:
  has_default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  print(stopped.step, tests.Memory.made[0].end, has_default)
"""


def test_sigterm_in_the_last_hook_stops_a_run_that_is_saved(tmp_path):
  # In a process of its own, as a signal that is not handled ends it.
  command = [sys.executable, "-c", LAST_HOOK, str(TESTS), str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert (done.stdout, done.returncode) == ("2 ('stopped', {}) True\n", 0), done.stderr


def test_passwords_in_addresses_are_not_shown(tmp_path, capfd):
  class Refused(Memory):
    def log(self, step, split, values):
      raise ConnectionError("https://me:p@ss@host:1/a?b=c@d and postgresql://tok@host")

  log_one(tmp_path, Refused)
  said = capfd.readouterr().err
  assert "https://***@host:1/a?b=c@d and postgresql://***@host" in said


def log_one(workdir, tracker, step=1):
  """Opens a tracker for a run, and logs a line of a step."""
  with open_trackers(str(workdir), make_config(), 6, [tracker]) as (opened,):
    opened.log(step, "train", {"loss": 1.0})
  return Memory.made[-1]


def test_a_run_without_a_checkpoint_begins_again_in_the_trackers(tmp_path):
  first, second = log_one(tmp_path, Memory), log_one(tmp_path, Memory)
  assert first.run.id != second.run.id
  assert first.lines == second.lines == [(1, "train", {"loss": 1.0})]


@pytest.mark.parametrize(
  ("error", "status"),
  [(Stopped(3), "stopped"), (KeyboardInterrupt(), "stopped"), (OSError(), "failed")],
)
def test_trackers_are_told_how_the_run_ended(tmp_path, error, status):
  opened = open_trackers(str(tmp_path), make_config(), 6, [Memory])
  with pytest.raises(type(error)), opened:
    raise error
  assert Memory.made[0].end == (status, {})


def test_only_process_0_has_trackers(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with open_trackers(str(tmp_path), make_config(), 6, [Memory]) as opened:
    assert not opened
  assert not Memory.made and not list(tmp_path.iterdir())


class Broken(Memory):
  """A tracker whose server does not answer until `is_up` is set."""

  is_up = threading.Event()

  def log(self, step, split, values):
    if not self.is_up.is_set():
      raise ConnectionError("no\nanswer")
    super().log(step, split, values)


def test_a_server_that_is_down_delays_nothing_and_gets_all_lines_later(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(background, "_RETRY_AFTER_S", 0.05)
  with open_trackers(str(tmp_path), make_config(), 6, [Broken]) as (tracker,):
    for step in range(100):
      tracker.log(step, "train", {"loss": 1.0})
    time.sleep(0.2)
    Broken.is_up.set()
    time.sleep(0.2)
  Broken.is_up.clear()
  assert [line[0] for line in Memory.made[0].lines] == list(range(100))
  said = capfd.readouterr()
  assert said.err == (
    "warning: Broken fails at step 0: ConnectionError: no answer; the run continues "
    "and sends the metrics again every minute\n"
  )
  assert said.out == "Broken works again; no metrics are missing\n"


def test_a_server_that_stays_down_ends_no_run_and_gets_the_lines_later(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(opening, "latest_step", lambda workdir: 3)
  first = log_one(tmp_path, Broken)
  assert first.end[0] == "finished" and not first.lines
  _, last = capfd.readouterr().err.splitlines()
  assert last == (
    "warning: Broken has not received the end of metrics.jsonl (1 lines); start the "
    "same command again to send it"
  )
  Broken.is_up.set()
  lines = [log_one(tmp_path, Broken).lines for _ in range(2)]
  Broken.is_up.clear()
  assert lines == [[(1, "train", {"loss": 1.0})], []]


def test_a_server_that_hangs_does_not_hold_up_a_run_that_is_killed(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(background, "_PATIENCE_S", 0.1)
  never = threading.Event()

  class Hangs(Memory):
    def log(self, step, split, values):
      never.wait()

  opened = open_trackers(str(tmp_path), make_config(), 6, [Hangs])
  with pytest.raises(Stopped), opened as (tracker,):
    tracker.log(1, "train", {"loss": 1.0})
    raise Stopped(1)
  never.set()
  assert (
    "Hangs did not take the last metrics in time; metrics.jsonl"
    in capfd.readouterr().err
  )


def broken_start(run):
  raise ZeroDivisionError("in the user's code")


def makes_no_tracker(run):
  return run


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ("wanbd", r"config\.trackers=\('wanbd',\) must be different names of 'mlflow', "),
    ("wandb,wandb", "must be different names"),
    ("no_such_module:f", "there is no module 'no_such_module'"),
    ("test_trackers:nothing", "test_trackers has no 'nothing'"),
    ("wandb", r"needs the package wandb: pip install 'flax-resnet\[wandb\]'"),
  ],
)
def test_wrong_trackers_are_one_line_before_images_are_read(
  names, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(Experiment, "train_data", property(lambda self: pytest.fail()))
  with pytest.raises(SystemExit) as end:
    main(["train", f"--workdir={tmp_path / 'x'}", f"--config.trackers={names}"])
  error = capsys.readouterr().err
  assert end.value.code == 2 and re.search(message, error) and error.count("\n") == 1
  assert not (tmp_path / "x").exists()


def test_a_folder_of_a_package_name_is_no_package(tmp_path, monkeypatch):
  """W&B itself creates such folders."""
  (tmp_path / "wandb").mkdir()
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  with pytest.raises(UserError, match="needs the package wandb"):
    find_trackers(["wandb"])


def test_a_tracker_that_does_not_start_ends_the_run(tmp_path, monkeypatch):
  def run_with(name):
    with open_trackers(str(tmp_path), make_config(trackers=(name,)), 6):
      pytest.fail("it started")

  with pytest.raises(ZeroDivisionError, match="in the user's code"):
    run_with("test_trackers:broken_start")
  with pytest.raises(UserError, match="must return Tracker, not TrackedRun"):
    run_with("test_trackers:makes_no_tracker")
  monkeypatch.setitem(TRACKERS, "mlflow", broken_start)
  monkeypatch.setattr(opening, "_check_installed", lambda name: None)
  message = r"config\.trackers=mlflow does not start: in the user's code"
  with pytest.raises(UserError, match=message):
    run_with("mlflow")


@pytest.mark.parametrize("name", ["id.txt", "Memory.json"])
def test_a_damaged_file_is_named(tmp_path, monkeypatch, name):
  monkeypatch.setattr(opening, "latest_step", lambda workdir: 3)
  log_one(tmp_path, Memory)
  (tmp_path / "trackers" / name).write_text("{}")
  with pytest.raises(UserError, match=rf"{name} is damaged.*trackers to begin new"):
    log_one(tmp_path, Memory)


def test_a_run_directory_runs_no_tracker_by_itself(tmp_path, capsys):
  config = make_config(trackers=("test_trackers:Memory",), model=ModelConfig())
  (tmp_path / "config.json").write_text(serialization.to_json(config))
  with pytest.raises(SystemExit):
    main(["train", f"--workdir={tmp_path}"])
  assert "config.trackers='test_trackers:Memory'; if you" in capsys.readouterr().err
  assert not load_run_config(tmp_path, used=USED).model.factory  # To evaluate it.


# The tests below use the real programs.


class Report(Hook):
  """Writes a report, as the command does."""

  def __init__(self, workdir):
    self.folder = Path(workdir, "report")

  def on_end(self, state, metrics):
    self.folder.mkdir()
    (self.folder / "report.html").write_text("<b>report</b>")


CHILD = """
import os, pathlib, signal, sys, time
sys.path.insert(0, sys.argv[1])
import test_trackers

class Dies(test_trackers.Hook):
  def on_log(self, step, values):
    if step == 5:
      time.sleep(2)  # For the trackers' threads.
      os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
  config = test_trackers.make_config(trackers=("wandb", "mlflow"))
  test_trackers.run(config, sys.argv[2], hooks=[Dies()])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  """The address of a server of MLflow."""
  pytest.importorskip("mlflow.server")
  folder = tmp_path_factory.mktemp("mlflow")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  host, port = address.split(":")
  command = [
    *(sys.executable, "-m", "mlflow", "server", f"--host={host}", f"--port={port}"),
    *("--workers=1", f"--backend-store-uri=sqlite:///{folder}/mlflow.db"),
    f"--artifacts-destination={folder}/artifacts",
  ]
  with (folder / "log").open("w") as log:
    process = subprocess.Popen(
      command, stdout=log, stderr=log, start_new_session=True, cwd=folder
    )
  try:
    for _ in range(600):
      try:
        urllib.request.urlopen(f"http://{address}/health", timeout=1)
        break
      except OSError:
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
    yield f"http://{address}"
  finally:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, server):
  """The directory of a run that was killed and resumed, with both trackers."""
  wandb = pytest.importorskip("wandb")
  workdir = tmp_path_factory.mktemp("tracked")
  with pytest.MonkeyPatch.context() as patch:
    for name in ("WANDB_PROJECT", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME"):
      patch.delenv(name, raising=False)
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")
    patch.setenv("MLFLOW_TRACKING_URI", server)
    command = [sys.executable, "-c", CHILD, str(TESTS), str(workdir)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert find_run(server).info.status == "RUNNING"
    config = make_config(trackers=("wandb", "mlflow"), steps_per_call=2)
    run(config, workdir, hooks=[Report(workdir)])
  wandb.teardown()
  return workdir


def find_run(server):
  from mlflow import MlflowClient

  client = MlflowClient(server)
  experiment = client.get_experiment_by_name("resnet_jax")
  (found,) = client.search_runs([experiment.experiment_id])
  return found


def test_mlflow_has_the_metrics_settings_and_files_of_a_killed_and_resumed_run(
  tracked, server, tmp_path
):
  from mlflow import MlflowClient

  client, found = MlflowClient(server), find_run(server)
  assert found.info.status == "FINISHED" and found.info.run_name == tracked.name
  settings = flatten(make_config(trackers=("wandb", "mlflow")))
  settings["model.num_classes"], settings["data.eval_crop"] = 10, 8
  assert found.data.params.items() >= {
    (name, str(settings[name])) for name in ("optim.learning_rate", "trackers", "seed")
  }
  assert found.data.params.keys() == settings.keys()
  lines = lines_of(tracked)
  for name in found.data.metrics:
    split, key = name.split("/")
    if key in TIMES:
      continue
    values = {
      m.step: m.value for m in client.get_metric_history(found.info.run_id, name)
    }
    expected = {
      step: line[key] for step, s, line in lines if s == split and key in line
    }
    assert values == expected
  assert {"train/loss", "train/learning_rate", "eval/top1"} < found.data.metrics.keys()
  folder = client.download_artifacts(found.info.run_id, "", str(tmp_path))
  assert Path(folder, "report/report.html").read_text() == "<b>report</b>"
  images = np.zeros((2, 8, 8, 3), np.uint8)
  whole, copy = (load(str(path), trust_code=True) for path in (tracked, folder))
  np.testing.assert_array_equal(
    whole(images)["probabilities"], copy(images)["probabilities"]
  )


def read_wandb(path):
  """Yields the records of a file of W&B, which has the format of LevelDB's logs."""
  from wandb.proto.wandb_internal_pb2 import Record

  data, place, record = path.read_bytes(), 7, b""
  while place + 7 <= len(data):
    if 32768 - place % 32768 < 7:  # A block does not end with part of a header.
      place += 32768 - place % 32768
    length, kind = (
      int.from_bytes(data[place + 4 : place + 6], "little"),
      data[place + 6],
    )
    record += data[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # The last part of a record.
      yield Record.FromString(record)
      record = b""


def test_wandb_has_the_metrics_settings_and_files_of_a_killed_and_resumed_run(tracked):
  fragments = sorted(tracked.glob("wandb/offline-run-*/*.wandb"))
  assert len(fragments) == 2
  records = [list(read_wandb(path)) for path in fragments]
  ids = {r.run.run_id for part in records for r in part if r.HasField("run")}
  assert ids == {(tracked / "trackers" / "id.txt").read_text().strip()}
  projects = {r.run.project for part in records for r in part if r.HasField("run")}
  assert projects == {"resnet_jax"}
  config = {}
  for record in records[1]:
    for item in record.config.update:
      config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
  assert config["optim"]["learning_rate"] == make_config().optim.learning_rate
  assert config["steps_per_call"] == 2
  rows = {}
  for record in (r for part in records for r in part if r.HasField("history")):
    row = {i.nested_key[0]: i.value_json for i in record.history.item}
    (split,) = {key.split("/")[0] for key in row} & {"train", "eval", "curves"}
    rows[json.loads(row["step"]), split] = row
  assert {"curves", "report"} <= rows.pop((6, "curves")).keys()
  assert {
    place: {
      key.removeprefix(f"{place[1]}/"): json.loads(value)
      for key, value in row.items()
      if key.startswith(f"{place[1]}/") and key.split("/")[1] not in TIMES
    }
    for place, row in rows.items()
  } == {
    (step, split): {key: values[key] for key in values.keys() - TIMES}
    for step, split, values in lines_of(tracked)
  }
  (artifact,) = (r.artifact for r in records[1] if r.HasField("artifact"))
  paths = {entry.path for entry in artifact.manifest.contents}
  assert artifact.type == "model" and "checkpoints/6/digests.json" in paths
  assert [r.exit.exit_code for r in records[1] if r.HasField("exit")] == [0]


def test_mlflow_sends_what_it_lacks_and_changes_no_parameter(
  tmp_path, server, monkeypatch
):
  monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
  monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "others")
  monkeypatch.setattr(opening, "latest_step", lambda workdir: 3)
  long = make_config(trackers=("mlflow",), init_from="x" * 10_000)
  from mlflow import MlflowClient

  client = MlflowClient(server)

  def only_run():
    experiment = client.get_experiment_by_name("others")
    (found,) = client.search_runs([experiment.experiment_id])
    return found

  for seed, error, status in ((1, Stopped(3), "KILLED"), (2, OSError(), "FAILED")):
    config = dataclasses.replace(long, seed=seed)
    opened = open_trackers(str(tmp_path), config, 6)
    with pytest.raises(type(error)), opened as (tracker,):
      tracker.log(seed, "train", {"f1@0.5": 0.5 * seed})
      raise error
    found = only_run()
    assert found.info.status == status and found.data.params["seed"] == "1"
    assert found.data.metrics == {"train/f1_0.5": 0.5 * seed}


def test_mlflow_continues_the_run_that_its_variable_names(
  tmp_path, server, monkeypatch
):
  from mlflow import MlflowClient

  client = MlflowClient(server)
  given = client.create_run(client.create_experiment("given")).info.run_id
  monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
  monkeypatch.setenv("MLFLOW_RUN_ID", given)
  with open_trackers(str(tmp_path), make_config(trackers=("mlflow",)), 6) as (tracker,):
    tracker.log(1, "train", {"loss": 0.5})
  found = client.get_run(given)
  assert found.info.status == "FINISHED" and found.data.metrics == {"train/loss": 0.5}


def test_servers_that_do_not_answer_are_one_line(tmp_path, monkeypatch):
  pytest.importorskip("mlflow")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
  monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
  message = r"config\.trackers=mlflow does not start: .*127\.0\.0\.1:9"
  config = make_config(trackers=("mlflow",))
  with (
    pytest.raises(UserError, match=message),
    open_trackers(str(tmp_path), config, 6),
  ):
    pytest.fail("it started")


def test_the_tracker_in_the_docs_is_one_of_aim(tmp_path, monkeypatch):
  aim = pytest.importorskip("aim")
  page = (TESTS.parent / "docs" / "logging.md").read_text()
  (text,) = re.findall(
    r"```python\n(import dataclasses\n.*?import aim\n.*?)```", page, re.S
  )
  (tmp_path / "aim_tracker.py").write_text(text)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  config = make_config(trackers=("aim_tracker:AimTracker",))
  monkeypatch.setattr(opening, "latest_step", lambda workdir: 3)
  (tmp_path / "run").mkdir()
  for step in (1, 2):  # The second time resumes the run.
    with open_trackers(str(tmp_path / "run"), config, 6) as (tracker,):
      tracker.log(step, "train", {"loss": 1 / step})
      tracker.log(step, "eval", {"loss": 2 / step, "top1": 0.5})
  found = aim.Run((tmp_path / "run" / "aim_hash.txt").read_text())
  assert found["config"]["optim"]["learning_rate"] == config.optim.learning_rate
  shown = {}
  for metric in found.metrics():
    if "split" in metric.context:  # Aim adds loads of the machine.
      table = metric.dataframe()
      name = f"{metric.context['split']}/{metric.name}"
      shown[name] = dict(zip(table["step"], table["value"], strict=True))
  found.close()
  assert shown == {
    "train/loss": {1: 1.0, 2: 0.5},
    "eval/loss": {1: 2.0, 2: 1.0},
    "eval/top1": {1: 0.5, 2: 0.5},
  }
