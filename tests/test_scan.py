"""Scanned, rematerialised and unrolled networks compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal, variables_of

from resnet_jax import create_model
from resnet_jax.models.scan_layout import is_scanned, to_named, to_scanned
from resnet_jax.runtime.compilation import jit_once

SIZES = (1, 3)  # A stage with nothing to scan, and one with something.
MODELS = {
  "highway14": {"stochastic_depth": 0.5, "norm": "unbiased_batch"},
  "resnetv2_164": {},
  "ecaresnet26t": {"stem": "cifar", "norm": "evo"},
}
IMAGES = normal(8, 8, 8, 3, seed=1)


def make(name, **kwargs):
  model = create_model(name, 5, **MODELS[name], **kwargs)
  return model.clone(stage_sizes=SIZES, features=8)


def assert_close(a, b, tolerance):
  def check(x, y):
    # Relative to the largest value: single numbers of a gradient may cancel to 0.
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * (1e-3 + abs(x).max()))

  jax.tree.map(check, a, b)


def run_step(model, variables):
  """Returns loss, logits, new statistics and gradients in train mode."""

  def loss_fn(params):
    logits, updates = model.apply(
      variables | {"params": params},
      IMAGES,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.key(7)},
    )
    return (logits**2).mean(), (logits, updates)

  return jit_once(jax.value_and_grad(loss_fn, has_aux=True))(variables["params"])


@pytest.mark.parametrize("name", MODELS)
def test_scanned_and_rematerialised_nets_equal_the_unrolled_one(name):
  named = variables_of(make(name), IMAGES, spread=0.2)
  expected = run_step(make(name), named)
  cases = [({"scan": True, "remat": True}, to_scanned(named))]
  if name == "highway14":  # Each option alone, for one net: each takes seconds.
    cases += [({"scan": True}, named), ({"remat": True}, named)]
  for options, variables in cases:
    result = run_step(make(name, **options), variables)
    assert is_scanned(result[1]) == is_scanned(variables)
    assert_close(expected, to_named(result), 1e-5)


def test_scanned_and_unrolled_nets_start_with_and_evaluate_to_the_same_numbers():
  model = create_model("resnet20", 5).clone(stage_sizes=(3,), features=4)
  named = jit_once(model.init)(jax.random.key(0), IMAGES)
  scanned = jit_once(model.clone(scan=True).init)(jax.random.key(0), IMAGES)
  jax.tree.map(np.testing.assert_array_equal, named, to_named(scanned))
  expected = jit_once(model.apply)(named, IMAGES)
  for variables in (named, scanned):
    logits = jit_once(model.clone(scan=True).apply)(variables, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_layouts_are_each_others_inverse():
  kernels = jnp.arange(12.0).reshape(3, 4)
  named = {"params": {"stage1": {}, "head": {"bias": jnp.zeros(2)}}}
  named["params"]["stage1"] = {f"block{i + 1}": {"x": kernels[i]} for i in range(3)}
  named["params"]["stage2"] = {"block1": {"x": kernels[0]}}
  scanned = to_scanned(named)
  assert set(scanned["params"]["stage1"]) == {"block1", "blocks"}
  assert set(scanned["params"]["stage2"]) == {"block1"}
  np.testing.assert_array_equal(scanned["params"]["stage1"]["blocks"]["x"], kernels[1:])
  assert is_scanned(scanned) and not is_scanned(named)
  jax.tree.map(np.testing.assert_array_equal, to_named(scanned), named)
  jax.tree.map(np.testing.assert_array_equal, to_named(named), named)
  state = (named, jnp.zeros(()))  # Like the state of an optimiser.
  jax.tree.map(np.testing.assert_array_equal, to_named(to_scanned(state)), state)


def test_more_than_ten_blocks_keep_their_order():
  tree = {"stage1": {f"block{i}": {"x": jnp.float32(i)} for i in range(1, 13)}}
  scanned = to_scanned({"params": tree})["params"]["stage1"]
  np.testing.assert_array_equal(scanned["blocks"]["x"], np.arange(2, 13))


@pytest.mark.parametrize("train", [False, True])
def test_a_scanned_program_is_as_long_for_any_depth(train):
  def program(depth: int) -> int:
    model = create_model("resnet20", scan=True).clone(stage_sizes=(depth,) * 3)
    images = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))

    def loss(variables):
      mutable = ["batch_stats"] if train else []
      logits, updates = model.apply(variables, images, train=train, mutable=mutable)
      return logits.sum(), updates

    function = jax.grad(loss, has_aux=True) if train else loss
    return len(jax.jit(function).lower(variables).as_text().splitlines())

  assert program(3) == program(100)


def test_remat_keeps_fewer_activations():
  def kept(remat: bool) -> int:
    model = create_model("resnet20", remat=remat)
    images = jnp.zeros((8, 16, 16, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))

    def loss(variables):
      return model.apply(variables, images).sum()

    _, residuals = jax.eval_shape(lambda v: jax.vjp(loss, v), variables)
    return sum(leaf.size for leaf in jax.tree.leaves(residuals))

  assert kept(True) < 0.5 * kept(False)
