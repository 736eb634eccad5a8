"""Starting from trained weights, frozen groups, and learning rates per group."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal
from running import train_config

from resnet_jax import create_model, load, weights
from resnet_jax.cli import settings
from resnet_jax.config import Config, DataConfig, OptimConfig, serialization
from resnet_jax.config.preprocessing import (
  OF_WEIGHTS,
  Preprocessing,
  preprocessing_of,
  with_preprocessing,
)
from resnet_jax.config.schema import ModelConfig
from resnet_jax.config.validation import validate
from resnet_jax.config.values import parse_names
from resnet_jax.models.building import build_model
from resnet_jax.models.groups import check_frozen, check_multipliers
from resnet_jax.models.scan_layout import to_named
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.run_dir import load_run_config
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.optimizer import create_optimizer
from resnet_jax.training.transfer import load_start

MODEL = ModelConfig(name="resnet8", num_classes=10, dtype="float32")


def digits_config(**changes) -> Config:
  config = Config(num_steps=4, batch_size=16, seed=3)
  config.model.name = "resnet8"
  return dataclasses.replace(config, **changes)


def train(config, workdir, devices=1):
  return train_config(config, str(workdir), jax.devices()[:devices])


def named(tree):
  """Returns the leaves in the named layout, by their path."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(to_named(tree)))
  return {tuple(key.key for key in path): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A run with another number of classes, and a file with the same weights."""
  workdir = tmp_path_factory.mktemp("source") / "run"
  config = digits_config(num_steps=2, seed=1)
  config.model.num_classes = 13
  state, _ = train(config, workdir)
  file = workdir.parent / "weights.safetensors"
  saved = load_run_config(str(workdir))
  size = preprocessing_of(saved.data)
  weights.save(file, build_model(saved), state.variables, size)
  return workdir, file, named(state.variables)


@pytest.mark.parametrize(("kind", "extra"), [("run", "everything"), ("file", "")])
def test_frozen_groups_stay_to_the_byte_and_the_others_move(
  source, tmp_path, kind, extra
):
  workdir, file, start = source
  config = digits_config(
    init_from=str(workdir if kind == "run" else file), freeze=("stem", "stage1")
  )
  if extra:  # All that changes parameters or statistics besides the gradient.
    config.precise_bn_batches = 2
    config.model.stochastic_depth = 0.3
    config.optim = OptimConfig(
      name="adamw", ema_decay=0.9, clip_norm=1.0, decay_all=True, accumulate=2
    )
  state, results = train(config, tmp_path / "run", devices=2 if extra else 1)
  with CheckpointStore(str(tmp_path / "run")) as store:
    _, evaluated = store.restore_model("latest")
  assert np.isfinite(results["loss"])
  versions = [state.variables, evaluated, *([state.ema] if extra else [])]
  for variables in versions:
    after = named(variables)
    assert after.keys() == start.keys()
    for path, leaf in after.items():
      if path[1] in ("stem", "stage1"):
        np.testing.assert_array_equal(leaf, start[path])
      elif path[1] != "head":
        assert not np.array_equal(leaf, start[path]), path
    assert after["params", "head", "kernel"].shape == (64, 10)


def test_a_frozen_group_computes_as_in_evaluation():
  model = create_model("resnet8", 4)
  images = normal(4, 8, 8, 3)
  variables = model.init(jax.random.key(0), images)
  variables["batch_stats"] = jax.tree.map(lambda x: x + 1, variables["batch_stats"])
  frozen = model.clone(frozen=model.groups)
  logits, updates = frozen.apply(variables, images, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(logits, model.apply(variables, images), atol=1e-5)
  jax.tree.map(
    np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"]
  )
  with pytest.raises(ValueError, match="frozen='stage4' is unknown; did you mean"):
    model.clone(frozen=("stage4",)).apply(variables, images)


@pytest.mark.parametrize(
  "name", ["sgd", "adam", "adamw", "lars", "lamb", "muon", "schedule_free_sgd"]
)
def test_groups_have_learning_rates_of_their_own(name):
  """A group changes as if it was trained alone, at its own rate."""
  params = {
    group: {"kernel": normal(5, 3, seed=i)}
    for i, group in enumerate(("stem", "stage1", "head"))
  }
  gradients = jax.tree.map(lambda x: 2 * x + 1, params)
  config = OptimConfig(name=name, weight_decay=0.1)
  own_rates = dataclasses.replace(config, learning_rate_multipliers={"head": 10.0})

  def update(tx, params, gradients):
    state = tx.init(params)
    for _ in range(3):
      updates, state = tx.update(gradients, state, params)
      params = optax.apply_updates(params, updates)
    return params

  tx = create_optimizer(own_rates, lambda _: 0.1, ("stage1",))
  together = update(tx, params, gradients)
  np.testing.assert_array_equal(
    together["stage1"]["kernel"], params["stage1"]["kernel"]
  )
  for group, rate in {"stem": 0.1, "head": 1.0}.items():
    alone = create_optimizer(config, lambda _, rate=rate: rate)
    expected = update(alone, {group: params[group]}, {group: gradients[group]})
    np.testing.assert_allclose(
      together[group]["kernel"], expected[group]["kernel"], rtol=1e-5
    )


def test_layer_decay_lowers_the_rate_from_group_to_group():
  groups = {"stem": 4, "stage1": 3, "stage2": 2, "stage3": 1, "bn": 0, "head": 0}
  params = {group: {"kernel": jnp.ones(4)} for group in groups}
  config = OptimConfig(
    layer_decay=0.5, weight_decay=0.0, learning_rate_multipliers={"head": 10.0}
  )
  tx = create_optimizer(config, lambda _: 1.0)
  updates, _ = tx.update(params, tx.init(params), params)
  for group, distance in groups.items():
    expected = -(0.5**distance) * (10 if group == "head" else 1)
    np.testing.assert_allclose(updates[group]["kernel"], expected)
  with pytest.raises(UserError, match="the network has first, so use"):
    tx.init({"first": params["head"]})


def test_frozen_groups_do_not_count_for_the_clipped_norm():
  params = {"stem": {"kernel": jnp.ones(4)}, "head": {"kernel": jnp.ones(4)}}
  gradients = {"stem": {"kernel": 1e9 * jnp.ones(4)}, "head": {"kernel": jnp.ones(4)}}
  config = OptimConfig(momentum=0.0, weight_decay=0.0, clip_norm=2.0)
  tx = create_optimizer(config, lambda _: 0.5, ("stem",))
  updates, _ = tx.update(gradients, tx.init(params), params)
  np.testing.assert_allclose(updates["head"]["kernel"], -0.5)


def test_a_started_run_goes_on_without_what_it_started_from(source, tmp_path):
  """It also ends with the same parameters as an uninterrupted run."""
  workdir, _, _ = source
  config = digits_config(init_from=str(workdir), freeze=("stem",))
  whole, _ = train(config, tmp_path / "whole")
  config = digits_config(init_from=str(tmp_path / "moved"), freeze=("stem",))
  (tmp_path / "moved").symlink_to(workdir)
  train(dataclasses.replace(config, num_steps=2), tmp_path / "parts")
  (tmp_path / "moved").unlink()
  parts, _ = train(config, tmp_path / "parts")
  jax.tree.map(np.testing.assert_array_equal, parts.variables, whole.variables)


def test_a_run_whose_checkpoints_are_damaged_starts_as_it_did(source, tmp_path, capsys):
  workdir, _, start = source
  config = digits_config(init_from=str(workdir), freeze=("stem",), num_steps=2)
  train(config, tmp_path / "run")
  files = (tmp_path / "run" / "checkpoints" / "2" / "model").rglob("*")
  largest = max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:-1])
  state, _ = train(config, tmp_path / "run")
  assert "was moved to" in capsys.readouterr().out
  path = "params", "stem", "conv", "kernel"
  np.testing.assert_array_equal(named(state.variables)[path], start[path])


def test_weights_of_the_package_are_a_start_by_name(capsys):
  config, name = digits_config(), "resnet8_digits"
  with pytest.raises(ValueError, match="saved from resnet8, not from resnet14"):
    load_start(name, create_model("resnet14"), (8, 8, 1), config.data)
  found = load_start(name, create_model("resnet8", 3), (8, 8, 1), config.data)
  packaged = load(name).variables
  del packaged["params"]["head"]
  jax.tree.map(np.testing.assert_array_equal, found, packaged)
  assert capsys.readouterr().err == ""


def test_weights_for_colour_start_a_network_for_other_images(capsys):
  config = digits_config()
  found = load_start(
    "resnet20_cifar10", create_model("resnet20"), (8, 8, 1), config.data
  )
  theirs = load("resnet20_cifar10").variables["params"]["stem"]["conv"]["kernel"]
  np.testing.assert_allclose(
    found["params"]["stem"]["conv"]["kernel"], theirs.sum(2, keepdims=True), rtol=1e-6
  )
  assert (
    "are for images of 3 channels, and the images have 1" in capsys.readouterr().err
  )


EXPECTED = Preprocessing((0.25,), (0.75,), resize=10, crop=6, interpolation="bicubic")


@pytest.fixture
def start(source, tmp_path):
  """A run and a file whose weights have the preprocessing `EXPECTED`."""
  _, file, _ = source
  config = digits_config(model=MODEL)
  variables = weights.load(file, create_model("resnet8", 13))
  weights.save(
    tmp_path / "x.safetensors", create_model("resnet8", 13), variables, EXPECTED
  )
  config.data = with_preprocessing(config.data, EXPECTED)
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text(serialization.to_json(config))
  return {"run": str(tmp_path / "run"), "file": str(tmp_path / "x.safetensors")}


def with_empty_fields(config: Config, **data) -> Config:
  """Returns settings that use the preprocessing of the weights, except for `data`."""
  config.data = dataclasses.replace(config.data, **(OF_WEIGHTS | data))
  return config


@pytest.mark.parametrize("kind", ["run", "file"])
def test_empty_fields_take_the_preprocessing_of_the_weights(start, kind):
  config = with_empty_fields(digits_config(init_from=start[kind]))
  data = Experiment.create(config).config.data
  assert preprocessing_of(data) == EXPECTED
  config = with_empty_fields(config, mean=(0.5,), eval_crop=4)
  own = preprocessing_of(Experiment.create(config).config.data)
  assert own == dataclasses.replace(EXPECTED, mean=(0.5,), crop=4)
  with pytest.raises(UserError, match=r"eval_crop=11 must be at most .*eval_resize=10"):
    Experiment.create(with_empty_fields(config, eval_crop=11))
  with pytest.raises(FileNotFoundError, match=r"no config\.init_from="):
    Experiment.create(dataclasses.replace(config, init_from=start[kind] + "2"))


def test_empty_fields_take_the_preprocessing_of_imagenet_without_weights():
  config = with_empty_fields(Config(data=DataConfig(name="synthetic")))
  assert preprocessing_of(Experiment.create(config).config.data) == Preprocessing()


def test_a_run_keeps_the_preprocessing_of_the_weights_and_resumes_without_them(
  start, tmp_path, capsys
):
  config = with_empty_fields(digits_config(init_from=start["file"], num_steps=2))
  train(config, tmp_path / "new")
  assert "warning" not in capsys.readouterr().err
  (tmp_path / "x.safetensors").unlink()
  saved = load_run_config(str(tmp_path / "new"))
  assert preprocessing_of(saved.data) == EXPECTED
  train(dataclasses.replace(saved, num_steps=3), tmp_path / "new")


@pytest.mark.parametrize("kind", ["run", "file"])
def test_another_mean_than_the_weights_expect_is_said(source, kind, tmp_path, capsys):
  workdir, file, _ = source
  said = []
  for mean in ((0.5,), (0.5, 0.5, 0.5), (0.25,)):
    config = digits_config(init_from=str(workdir if kind == "run" else file))
    config.data.mean = mean
    model = build_model(dataclasses.replace(config, model=MODEL))
    load_start(config.init_from, model, (8, 8, 1), config.data)
    said.append(capsys.readouterr().err)
  assert said[:2] == ["", ""]  # One value stands for all channels.
  assert said[2] == (
    "warning: the weights of config.init_from expect images with mean=(0.5,), but "
    "config.data.mean=(0.25,); an empty --config.data.mean= takes the value of the "
    "weights\n"
  )


@pytest.mark.parametrize("kind", ["run", "file"])
def test_weights_of_another_network_with_equal_shapes_are_refused(source, kind):
  workdir, file, _ = source
  path = str(workdir if kind == "run" else file)
  config = digits_config(model=dataclasses.replace(MODEL, name="plain8"))
  with pytest.raises(ValueError, match="saved from resnet8, not from plain8: its"):
    load_start(path, build_model(config), (8, 8, 1), config.data)


def test_weights_that_do_not_fit_are_refused_before_there_is_a_run(
  source, tmp_path, monkeypatch
):
  workdir, file, _ = source
  monkeypatch.setenv("HOME", str(tmp_path))
  for change, text in (
    (
      {"name": "resnet20"},
      "does not fit the model: .*stage1/block2/bn1/bias is mis",
    ),
    ({"stem": "imagenet"}, r"stem/conv/kernel is \(3, 3, 1, 16\) and must be \(7, 7"),
  ):
    config = digits_config(init_from=str(workdir))
    config.model = dataclasses.replace(config.model, **change)
    with pytest.raises(ValueError, match=text):
      train(config, tmp_path / "run")
  for path, text in (
    (tmp_path / "none", "no config.init_from="),
    ("~/none", f"no config.init_from='{tmp_path}/none'"),
    ("resnet8_digit", "'resnet8_digit'.*; the package has resnet8_digits"),
    (tmp_path, "no run"),
    (workdir / "checkpoints" / "7", "no config.init_from="),
  ):
    config = digits_config(init_from=str(path))
    with pytest.raises(FileNotFoundError, match=text):
      train(config, tmp_path / "run")
  config = digits_config(init_from=str(file))
  config.data.name, config.data.num_examples = "synthetic", 32
  with pytest.raises(ValueError, match=r"stem/conv/kernel is \(3, 3, 1, 16\) and"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("freeze", "error"),
  [
    ("stem,stage9", "config.freeze='stage9' is unknown; did you mean stage"),
    ("stem,", "config.freeze='' is unknown"),
    ("stem,stage1,stage2,stage3,head", "leaves nothing to train"),
  ],
)
def test_a_wrong_freeze_is_refused(freeze, error):
  with pytest.raises(ValueError, match=error):
    check_frozen(parse_names(freeze), create_model("resnet8").groups)


def multipliers_of(text):
  """Returns multipliers that are parsed and checked as by the command."""
  values = settings.parse_settings([f"--config.optim.learning_rate_multipliers={text}"])
  config = settings.change(digits_config(), values)
  validate(config)
  multipliers = config.optim.learning_rate_multipliers
  check_multipliers(multipliers, create_model("resnet8").groups)
  return multipliers


@pytest.mark.parametrize(
  "text", ["head", "head=", "head=-1", "head=inf", "head=nan", ",", "head=1,head=2"]
)
def test_wrong_multipliers_are_refused(text):
  with pytest.raises(ValueError, match="learning_rate_multipliers="):
    multipliers_of(text)
  assert multipliers_of("head=10, stem=0.1") == {"head": 10, "stem": 0.1}
