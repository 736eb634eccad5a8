"""A user's own network, task, data and optimiser are trained, resumed and used."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from own_parts import Margin, TinyNet, optimizer
from running import train_config

from resnet_jax import Config, Experiment, load, train
from resnet_jax.cli.main import main
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


def test_own_parts_as_objects_replace_those_of_the_config(tmp_path):
  config = Config(num_steps=2, batch_size=8, steps_per_call=1)
  experiment = Experiment.create(
    config,
    devices=jax.devices()[:1],
    model=TinyNet(10),
    task=Margin(10),
    optimizer=optimizer(lambda step: 0.1),
  )
  state, metrics = train(experiment, str(tmp_path / "run"))
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
