"""FixRes: a kept head, the body frozen up to the last norm, crops as in the test."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from arrays import normal, pixels
from PIL import Image
from running import train_config

from resnet_jax import create_model, weights
from resnet_jax.config import Config, OptimConfig
from resnet_jax.config.preprocessing import preprocessing_of
from resnet_jax.config.schema import ModelConfig
from resnet_jax.config.validation import validate
from resnet_jax.data.images.crops import EvalTransform, TrainTransform
from resnet_jax.models.building import build_model, with_frozen
from resnet_jax.models.groups import check_frozen, frozen_mask
from resnet_jax.runs.checkpoint import CheckpointStore
from resnet_jax.runs.run_dir import load_run_config
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.transfer import load_start, start_from


def digits_config(**changes) -> Config:
  config = Config(num_steps=3, batch_size=16, seed=3)
  config.model.name = "resnet8"
  return dataclasses.replace(config, **changes)


def train(config, workdir):
  return train_config(config, str(workdir), jax.devices()[:1])


def leaves(variables) -> dict[str, np.ndarray]:
  """Returns the arrays by their path, such as "params/head/bias"."""
  found = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
  return {"/".join(key.key for key in path): leaf for path, leaf in found}


def changed(before, after) -> set[str]:
  before, after = leaves(before), leaves(after)
  assert before.keys() == after.keys()
  return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A run, and a file with the same weights and class names."""
  workdir = tmp_path_factory.mktemp("source") / "run"
  state, _ = train(digits_config(num_steps=2, seed=1), workdir)
  saved = load_run_config(str(workdir))
  file = workdir.parent / "weights.safetensors"
  names = [str(i) for i in range(10)]
  size = preprocessing_of(saved.data)
  weights.save(file, build_model(saved), state.variables, size, names)
  return {"run": str(workdir), "file": str(file)}, state


# One image size and few channels compile quickly.
TINY = {"stage_sizes": (1,), "features": 8, "num_classes": 3, "stem_features": 8}
IMAGES = normal(4, 8, 8, 3)


@pytest.mark.parametrize(
  ("name", "fields", "norm"),
  [
    ("resnet18", {"stage_sizes": (2,), "stochastic_depth": 0.5}, "stage1/block2/bn2"),
    # The last block has a norm in its shortcut too; that one is part of the body.
    ("seresnet50", {}, "stage1/block1/bn3"),
    ("resnetv2_18", {}, "bn"),
  ],
)
def test_of_a_frozen_body_only_the_last_norm_and_the_head_are_trained(
  name, fields, norm
):
  model = create_model(name).clone(**(TINY | fields))
  variables = model.init(jax.random.key(0), IMAGES)
  mask = leaves(frozen_mask(("body",), variables["params"]))
  assert {name for name, is_frozen in mask.items() if not is_frozen} == {
    "head/kernel",
    "head/bias",
    f"{norm}/scale",
    f"{norm}/bias",
  }
  apply = jax.jit(
    partial(with_frozen(model, ("body",)).apply, train=True, mutable=["batch_stats"])
  )
  _, updates = apply(variables, IMAGES, rngs={"dropout": jax.random.key(1)})
  assert changed({"batch_stats": variables["batch_stats"]}, updates) == {
    f"batch_stats/{norm}/mean",
    f"batch_stats/{norm}/var",
  }


def test_a_frozen_body_computes_as_in_evaluation_up_to_the_last_norm():
  model = create_model("resnet18").clone(**TINY)
  variables = model.init(jax.random.key(0), IMAGES)
  variables["batch_stats"] = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])

  def last_conv(model, train):
    names = ["batch_stats", "intermediates"]
    options = {"mutable": names, "capture_intermediates": True, "train": train}
    _, kept = jax.jit(partial(model.apply, **options))(variables, IMAGES)
    block = kept["intermediates"]["stage1"]["block1"]
    return block["conv2"]["__call__"][0], kept["batch_stats"]["stage1"]["block1"]["bn2"]

  evaluated, _ = last_conv(model, train=False)
  found, statistics = last_conv(with_frozen(model, ("body",)), train=True)
  np.testing.assert_allclose(found, evaluated, rtol=1e-5, atol=1e-6)
  expected = 0.9 * 0.5 + 0.1 * found.mean((0, 1, 2))
  np.testing.assert_allclose(statistics["mean"], expected, atol=1e-5)


def test_with_a_kept_head_a_run_starts_as_the_network_of_the_source(source):
  """All variables are equal, so the logits are too."""
  sources, state = source
  experiment = Experiment.create(digits_config(), devices=jax.devices()[:1])
  data, first = experiment.train_data, experiment.initial_state()
  for path in sources.values():
    args = path, experiment.model, data.image_shape, experiment.config.data
    start = load_start(*args, head=True, class_names=data.class_names)
    assert not changed(start_from(first, start).variables, state.variables)


def test_a_run_with_a_frozen_body_keeps_it_to_the_bit(source, tmp_path):
  """Weight decay, averages and precise statistics do not change it either."""
  sources, start = source
  config = digits_config(
    init_from=sources["run"],
    init_head=True,
    freeze=("body",),
    precise_bn_batches=2,
    optim=OptimConfig(name="adamw", decay_all=True, clip_norm=1.0, ema_decay=0.5),
  )
  state, _ = train(config, tmp_path / "run")
  with CheckpointStore(str(tmp_path / "run")) as store:
    _, evaluated = store.restore_model("latest")
  for variables in (state.variables, state.ema, evaluated):
    moved = changed(start.variables, variables)
    assert {name.split("/", 1)[1].rsplit("/", 1)[0] for name in moved} == {
      "head",
      "stage3/block1/bn2",
    }
    assert len(moved) == 6


def test_heads_for_other_classes_are_refused(source, tmp_path):
  sources, _ = source
  for kind, text in (
    ("run", r"head/bias is \(10,\) and must be \(12,\).*as many classes"),
    ("file", "its head has 10 classes, not 12.*without config.init_head"),
  ):
    config = digits_config(init_from=sources[kind], init_head=True)
    config.model.num_classes = 12
    with pytest.raises(UserError, match=text):
      train(config, tmp_path / "run")
  config = digits_config(init_from=sources["file"], init_head=True)
  names = ("0", "1", "two", *map(str, range(3, 10)))
  for path in sources.values():
    args = path, create_model("resnet8"), (8, 8, 1), config.data
    with pytest.raises(UserError, match=r"class 2 is '2' in .* and 'two' in the"):
      load_start(*args, head=True, class_names=names)
  assert not (tmp_path / "run").exists()
  with pytest.raises(UserError, match=r"init_head=True needs config\.init_from"):
    validate(digits_config(init_head=True))


def test_a_body_that_cannot_be_frozen_is_refused():
  groups = create_model("resnet8").groups
  with pytest.raises(UserError, match="freeze='body' is unknown"):
    check_frozen(("body",), ("first", "last"))
  for frozen in (("body", "head", "stage3"), groups):
    with pytest.raises(UserError, match="leaves nothing to train"):
      check_frozen(frozen, groups, has_body=True)
  check_frozen(("body", "head"), groups, has_body=True)
  config = digits_config(
    freeze=("body",), model=ModelConfig("resnet20", num_classes=10, scan=True)
  )
  with pytest.raises(UserError, match=r"freeze=body needs config\.model\.scan=False"):
    build_model(config)
  config.model.name = "resnetv2_164"  # Its last norm is outside its blocks.
  assert build_model(config).frozen == ("body",)


def test_a_group_named_body_is_a_group():
  tree = {"body": {"kernel": 1}, "head": {"kernel": 2}, "neck": {"kernel": 3}}
  assert frozen_mask(("body",), tree) == {
    "body": {"kernel": True},
    "head": {"kernel": False},
    "neck": {"kernel": False},
  }


def test_a_center_crop_of_training_is_that_of_evaluation(tmp_path):
  path = tmp_path / "image.png"
  Image.fromarray(np.asarray(pixels(1, 50, 70, 3)[0])).save(path)
  rng, content = np.random.default_rng(0), path.read_bytes()
  settings = {"resize": 36, "interpolation": "bicubic", "max_pixels": 10**6}
  training = TrainTransform(
    crop="center", size=32, min_area=0.1, policy="", magnitude=9, **settings
  )
  found = training(content, rng)
  np.testing.assert_array_equal(found, EvalTransform(crop=32, **settings)(content, rng))
  config = Config()
  config.data.train_crop, config.data.image_size = "center", 32
  with pytest.raises(UserError, match=r"image_size=32 must be at most .*='center'"):
    validate(config)
