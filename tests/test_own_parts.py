"""A user's own network, task, data and optimiser are trained, resumed and used."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import own_parts
import pytest
from own_parts import Margin, TinyNet, optimizer
from running import train_config

from resnet_jax import Config, Experiment, load, train
from resnet_jax.cli.main import main
from resnet_jax.config.fields import set_value
from resnet_jax.data import ImageArrays
from resnet_jax.runs.run_dir import load_run_config
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.evaluator import evaluate_run

pytestmark = pytest.mark.usefixtures("one_device")


def make_config() -> Config:
  config = Config(num_steps=6, batch_size=8, steps_per_call=2, task="own_parts:task")
  config.model.factory = "own_parts:network"
  config.data.factory = "own_parts:data"
  config.optim.factory = "own_parts:optimizer"
  config.augment.batch_factory = "own_parts:brighter"
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("own") / "run"
  return workdir, train_config(make_config(), workdir, jax.devices()[:1])


def test_a_run_of_own_parts_is_trained_and_resumed_to_the_same_bits(run, tmp_path):
  short = dataclasses.replace(make_config(), num_steps=3)
  train_config(short, tmp_path, jax.devices()[:1])
  state, _ = train_config(make_config(), tmp_path, jax.devices()[:1])
  assert set(state.params) == {"first", "last"}
  jax.tree.map(np.testing.assert_array_equal, state.params, run[1].state.params)
  assert {"loss", "top1", "confidence", "count"} <= run[1].metrics.keys()
  saved = json.loads((run[0] / "config.json").read_text())
  assert saved["model"]["factory"] == "own_parts:network"


def test_a_run_directory_runs_no_code_by_itself(run, capsys):
  workdir = str(run[0])
  with pytest.raises(UserError, match=r"own_parts:network.*--trust-code"):
    load(workdir)
  for command in (
    ["evaluate", f"--workdir={workdir}"],
    ["train", f"--workdir={workdir}"],
  ):
    with pytest.raises(SystemExit) as end:
      main(command)
    assert end.value.code == 2
    assert "--trust-code" in capsys.readouterr().err


def test_a_trusted_run_is_evaluated_and_loaded(run):
  workdir = str(run[0])
  config = load_run_config(workdir, trust_code=True)
  _, results = evaluate_run(config, workdir, trust_code=True)
  assert results["loss"] == pytest.approx(run[1].metrics["loss"], rel=1e-6)
  classifier = load(workdir, trust_code=True)
  found = classifier(np.zeros((2, 8, 8, 3), np.uint8))
  assert found["probabilities"].shape == (2, 2)
  assert classifier.class_names == ("dark", "light")


def test_own_parts_as_objects_replace_those_of_the_config(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  config = Config(num_steps=2, batch_size=8, steps_per_call=1)
  experiment = Experiment.create(
    config,
    devices=jax.devices()[:1],
    model=TinyNet(10),
    task=Margin(10),
    optimizer=optimizer(lambda step: 0.1),
  )
  state, metrics = train(experiment, "~/run")
  assert (tmp_path / "run" / "config.json").exists()
  assert set(state.params) == {"first", "last"} and "confidence" in metrics


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("no_such_module:x", "there is no module 'no_such_module'"),
    ("own_parts:nothing", "own_parts has no 'nothing'"),
    ("own_parts", "must be an import path"),
  ],
)
def test_wrong_paths_are_one_line(path, message):
  config = make_config()
  config.model.factory = path
  with pytest.raises(UserError, match=message):
    Experiment.create(config)


@pytest.mark.parametrize(
  ("setting", "path", "message"),
  [
    ("model.factory", "own_parts:CONSTANT", r"must be a function of \(ModelConfig\)"),
    ("model.factory", "own_parts:data", r"must take \(ModelConfig\): missing a req"),
    ("model.factory", "own_parts:task_of_two", "must return Module, not Margin"),
    ("task", "own_parts:brighter", "must return Task, not function"),
    (
      "data.factory",
      "own_parts:pair",
      "must return ImageArrays or ImageSource, not",
    ),
    ("optim.factory", "own_parts:task_of_two", "must return GradientTransformation"),
    ("augment.batch_factory", "own_parts:task_of_two", "must return function"),
    ("model.factory", "own_parts:two_outputs", r"returns \['float32\[1, 2\]', 'fl"),
    ("task", "own_parts:misnamed", r"Misnamed\.metrics returns count, which"),
  ],
)
def test_parts_of_another_kind_are_refused_before_there_is_a_run(
  tmp_path, setting, path, message
):
  config = make_config()
  set_value(config, setting, path)
  with pytest.raises(UserError, match=message):
    train_config(config, tmp_path / "run", jax.devices()[:1])
  assert not (tmp_path / "run").exists()


def test_images_as_objects_are_trained_and_evaluated(tmp_path):
  config = Config(num_steps=2, batch_size=8, steps_per_call=1)
  devices = jax.devices()[:1]
  images = {
    "train_data": own_parts.data(None, "train"),
    "eval_data": own_parts.data(0, "a"),
  }
  experiment = Experiment.create(config, devices=devices, model=TinyNet(2), **images)
  _, metrics = train(experiment, str(tmp_path))
  assert metrics["count"] == 40
  with pytest.raises(UserError, match=r"by Experiment\.create\(config, model=\.\.\.\)"):
    load(str(tmp_path))
  with pytest.raises(UserError, match=r"model=\.\.\., train_data=\.\.\.\); its"):
    load_run_config(tmp_path)
  for split in images:
    one = {split: images[split]}
    with pytest.raises(UserError, match="one of train_data and eval_data was given"):
      made = Experiment.create(config, devices=devices, model=TinyNet(2), **one)
      assert made.train_data and made.eval_data


@pytest.mark.parametrize(
  ("images", "labels", "message"),
  [
    (np.zeros((2, 4, 4, 3)), [0, 1], r"must be uint8 .*, not float64 \[2, 4, 4, 3\]"),
    (np.zeros((2, 4, 4), np.uint8), [0, 1], r"not uint8 \[2, 4, 4\]"),
    (np.zeros((0, 4, 4, 3), np.uint8), [], "N > 0"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0], r"must be whole numbers \[2\]"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0.0, 1.0], "not float64"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0, 2], "go from 0 to 2"),
    (np.zeros((2, 4, 4, 3), np.uint8), [-1, 1], "go from -1 to 1"),
  ],
)
def test_arrays_that_are_no_images_with_labels_are_refused(images, labels, message):
  with pytest.raises(UserError, match=message):
    ImageArrays(images, np.array(labels), ("a", "b"))


def test_an_own_optimiser_leaves_frozen_groups_and_heeds_multipliers(tmp_path):
  config = Config(num_steps=2, batch_size=8, steps_per_call=1, freeze=("stem",))
  config.model.name = "resnet8"
  config.optim.learning_rate_multipliers = {"stage1": 0.0}
  experiment = Experiment.create(
    config, devices=jax.devices()[:1], optimizer=optax.sgd(0.1)
  )
  first = experiment.initial_state()
  start = jax.device_get(first.params)
  state, _ = train(experiment, str(tmp_path))
  for group, stays in (("stem", True), ("stage1", True), ("stage2", False)):
    same = jax.tree.map(
      np.array_equal, start[group], jax.device_get(state.params[group])
    )
    assert all(jax.tree.leaves(same)) == stays
  assert "learning_rate" not in (tmp_path / "metrics.jsonl").read_text()


def test_groups_of_an_own_network_are_its_top_level_names():
  config = make_config()
  config.optim.learning_rate_multipliers = {"lst": 2.0}
  with pytest.raises(UserError, match="'lst' is unknown; did you mean last"):
    Experiment.create(config).state_init.sharding()


def test_settings_of_batch_norm_need_a_network_that_has_one():
  for field, value in (("bn_scope", "device"), ("precise_bn_batches", 2)):
    config = dataclasses.replace(make_config(), **{field: value})
    experiment = Experiment.create(config, devices=jax.devices()[:1])
    with pytest.raises(
      UserError, match=f"config.{field} needs a network with the field"
    ):
      assert experiment.state_init and experiment.refresh


def test_the_command_finds_parts_in_the_folder_where_it_starts(tmp_path):
  source = Path(own_parts.__file__).read_text()
  (tmp_path / "mine.py").write_text(source)
  command = [
    *(sys.executable, "-c", "import sys; sys.path.pop(0); from resnet_jax.cli.main "),
  ]
  command[-1] += "import main; main()"
  names = ("model.factory=mine:network", "data.factory=mine:data", "num_steps=2")
  flags = ["train", "--workdir=run", *(f"--config.{name}" for name in names)]
  done = subprocess.run(
    [*command, *flags], cwd=tmp_path, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert "network (" in done.stdout and "on data:" in done.stdout
