"""Averages of the parameters: what is evaluated, saved and resumed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal
from rich.console import Console
from running import train_config

from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from resnet_jax.config.validation import validate
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.averages import Mean
from resnet_jax.training.evaluator import evaluate, evaluate_run
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.optimizer import create_optimizer
from resnet_jax.training.state import TrainState


def make_config(**optim) -> Config:
  return Config(
    num_steps=9,
    batch_size=16,
    log_every_steps=5,
    eval_every_steps=5,
    model=ModelConfig(factory="own_parts:normed_network"),
    data=DataConfig(name="synthetic", image_size=8, num_examples=70),
    optim=OptimConfig(learning_rate=0.2, **optim),
  )


def run(config, workdir):
  console = Console(quiet=True)
  return train_config(config, workdir, jax.devices()[:1], console)


def assert_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def linear_state(tx, params) -> TrainState:
  return TrainState.create(
    apply_fn=lambda: None, tx=tx, params=params, batch_stats={}, key=jax.random.key(0)
  )


def test_the_schedule_free_average_is_that_of_the_paper():
  """Defazio et al. 2024, equations 2 to 4, with weight decay and a warmup."""
  config = OptimConfig(name="schedule_free_sgd", weight_decay=0.1, momentum=0.8)
  rates = [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]
  tx = create_optimizer(config, lambda step: jnp.array(rates)[step])
  start = normal(3, 2)
  state = linear_state(tx, {"head": {"kernel": start}})
  x = y = z = np.asarray(start)
  total = 0.0
  for step in range(5):
    gradient = normal(3, 2, seed=step)
    state = state.apply_gradients(grads={"head": {"kernel": gradient}})
    z = z - rates[step] * (gradient + 0.1 * y)
    # optax weighs with the rate of the next step, the largest one so far.
    weight = rates[step + 1] ** 2
    total += weight
    x = x + weight / total * (z - x)
    y = 0.2 * z + 0.8 * x
  np.testing.assert_allclose(state.params["head"]["kernel"], y, rtol=1e-5)
  average = state.versions["eval"]["params"]["head"]["kernel"]
  np.testing.assert_allclose(average, x, rtol=1e-5)


def test_a_frozen_group_is_the_same_in_the_schedule_free_average_to_the_bit():
  config = OptimConfig(name="schedule_free_sgd", weight_decay=0.1)
  params = {"stem": {"kernel": normal(9, 5)}, "head": {"kernel": normal(5, 3)}}
  tx = create_optimizer(config, optax.constant_schedule(0.1), ("stem",))
  state = linear_state(tx, params)
  for _ in range(3):
    state = state.apply_gradients(grads=params)
  for version in (state.params, state.versions["eval"]["params"]):
    np.testing.assert_array_equal(version["stem"]["kernel"], params["stem"]["kernel"])
    assert np.all(version["head"]["kernel"] != params["head"]["kernel"])


@pytest.mark.parametrize(
  ("optim", "precise"),
  [
    ({"name": "schedule_free_sgd"}, 2),
    ({"name": "muon", "nesterov": True, "swa_start_epochs": 1.0}, 0),
  ],
)
def test_an_average_is_evaluated_saved_and_resumed_to_the_bit(tmp_path, optim, precise):
  config = make_config(**optim)
  config.precise_bn_batches = precise
  state, results = run(config, tmp_path / "whole")
  run(dataclasses.replace(config, num_steps=5), tmp_path / "parts")
  resumed, again = run(config, tmp_path / "parts")
  assert_equal(resumed.opt_state, state.opt_state)
  assert_equal(resumed.variables, state.variables)
  assert again["loss"] == results["loss"]

  *_, version = state.versions.values()
  experiment = Experiment.create(config, devices=jax.devices()[:1])
  expected = experiment.refresh(version)
  assert evaluate(experiment, expected)["loss"] == results["loss"]
  last = evaluate(experiment, experiment.refresh(state.variables))["loss"]
  assert last != results["loss"]
  with CheckpointStore(str(tmp_path / "whole")) as store:
    _, saved = store.restore_model("latest")
  assert_equal(saved, expected)
  _, found = evaluate_run(config, str(tmp_path / "parts"), trust_code=True)
  assert found["loss"] == pytest.approx(results["loss"], rel=1e-6)


def test_stochastic_weight_averaging_is_the_mean_of_one_state_per_epoch():
  states = [{"params": normal(4, seed=i)} for i in range(12)]
  average, mean = states[0], Mean(start=3, period=4)
  for step, state in enumerate(states[1:], 1):
    average = mean(average, state, jnp.int32(step))
    counted = [s for s in (3, 7, 11) if s <= step] or [step]
    expected = np.mean([states[s]["params"] for s in counted], axis=0)
    np.testing.assert_allclose(average["params"], expected, rtol=1e-6, atol=1e-7)
    if len(counted) == 1:
      np.testing.assert_array_equal(average["params"], states[counted[0]]["params"])


def test_two_averages_are_refused():
  config = make_config(ema_decay=0.9, swa_start_epochs=1.0)
  with pytest.raises(UserError, match=r"ema_decay=0.9 and .* exclude each other"):
    validate(config)


def test_a_schedule_free_run_starts_at_the_weights_that_it_is_given(tmp_path):
  """Its average must not contain the random parameters of the first state."""
  config = Config(num_steps=1, batch_size=16, seed=1)
  config.model.name = "resnet8"
  first, _ = run(config, tmp_path / "first")
  config.init_from = str(tmp_path / "first")
  config.optim = OptimConfig(name="schedule_free_sgd", learning_rate=1e-6)
  state, _ = run(config, tmp_path / "second")
  for version in (state.params, state.versions["eval"]["params"]):
    found, start = (tree["stage1"]["block1"] for tree in (version, first.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, start)
