"""Normalisation layers: what they store, what training changes, and their formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal, pixels
from flax import linen as nn

from resnet_jax import create_model
from resnet_jax.data.batch import Batch
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import create_mesh
from resnet_jax.training.state import StateInit
from resnet_jax.training.steps import train_step
from resnet_jax.training.tasks import Classification

X = 3 + 2 * normal(2, 3, 3, 8)


@pytest.mark.parametrize("unbiased", [False, True])
def test_running_variance_divides_by_n_or_by_n_minus_1(unbiased):
  norm = BatchNorm(use_running_average=False, unbiased=unbiased)
  variables = norm.init(jax.random.key(0), X)
  _, updates = norm.apply(variables, X, mutable=["batch_stats"])
  expected = 0.9 + 0.1 * np.var(X, axis=(0, 1, 2), ddof=int(unbiased))
  np.testing.assert_allclose(updates["batch_stats"]["var"], expected, rtol=1e-5)


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (4, 4)])
def test_one_value_of_a_channel_is_not_normalised(count, groups):
  norm = BatchNorm(use_running_average=False, groups=groups)
  variables = norm.init(jax.random.key(0), X)
  single = normal(count, 1, 1, 8)
  with pytest.raises(UserError, match="has a single value of each channel"):
    norm.apply(variables, single, mutable=["batch_stats"])
  norm.clone(use_running_average=True).apply(variables, single)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (8, 8), (48, 16)])
def test_group_norm_normalises_each_group_of_each_example(channels, groups):
  x = 3 + 2 * normal(2, 4, 4, channels)
  y, variables = GroupNorm().init_with_output(jax.random.key(1), x)
  assert set(variables) == {"params"}
  assert set(variables["params"]) == {"scale", "bias"}
  y = y.reshape(2, 16, groups, -1)
  np.testing.assert_allclose(y.mean((1, 3)), np.zeros((2, groups)), atol=1e-5)
  np.testing.assert_allclose(y.var((1, 3)), np.ones((2, groups)), rtol=1e-3)


def test_frozen_batch_norm_is_batch_norm_by_its_running_statistics():
  leaves = dict(zip(("scale", "bias", "mean", "var"), 0.5 + jnp.arange(4), strict=True))
  leaves = {name: jnp.full(8, value) for name, value in leaves.items()}
  params = {name: leaves[name] for name in ("scale", "bias")}
  stats = {name: leaves[name] for name in ("mean", "var")}
  batch_norm = BatchNorm(use_running_average=True)
  expected = batch_norm.apply({"params": params, "batch_stats": stats}, X)
  for train in (False, True):
    norm = FrozenBatchNorm(use_running_average=not train)
    y, updates = norm.apply({"batch_stats": leaves}, X, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], leaves)


def take_step(norm: str):
  """Updates all parameters once, with weight decay, from random statistics."""
  tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))
  model = create_model("resnet8", 10, norm=norm)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state = StateInit(model, tx, (8, 8, 3), sharding)(jax.random.key(0))
  batch: Batch = {
    "image": pixels(4, 8, 8, 3),
    "label": jnp.arange(4),
    "mask": jnp.ones(4, bool),
  }

  def preprocess(images, key):
    return images / 255.0

  step = partial(train_step, task=Classification(10), preprocess=preprocess)
  after, _ = jax.jit(step)(state, batch)
  return state, after


def test_frozen_statistics_and_affine_never_move_in_training():
  before, after = take_step("frozen")
  assert not any("bn" in str(path) for path in leaf_paths(before.params))
  assert len(leaf_paths(before.batch_stats)) == 4 * 7
  jax.tree.map(np.testing.assert_array_equal, before.batch_stats, after.batch_stats)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
  assert all(jax.tree.leaves(moved))


def test_group_norm_has_no_statistics_and_trains():
  before, after = take_step("group")
  assert before.batch_stats == {} and after.batch_stats == {}
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("norm", ["batch", "unbiased_batch", "group", "frozen"])
def test_parameters_and_statistics_are_float32_under_bfloat16(norm):
  model = create_model("resnet8", 10, norm=norm, dtype=jnp.bfloat16)
  images = jnp.zeros((2, 8, 8, 3))
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
  logits, updates = jax.eval_shape(
    partial(model.apply, train=True, mutable=["batch_stats"]), variables, images
  )
  leaves = jax.tree.leaves((variables, logits, updates))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def leaf_paths(tree) -> list:
  return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


POOLED = {
  "vmap": ("vmap", None),
  "shard_map": ("shard_map", None),
  "pmap, halves": ("pmap", [[0, 1], [2, 3]]),  # JAX's other maps take no groups.
}


@pytest.mark.several_devices
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("kind", "axis_groups"), POOLED.values(), ids=POOLED)
def test_statistics_are_pooled_over_a_named_axis_as_by_flax(
  kind, axis_groups, unbiased
):
  """Compares results, running statistics and gradients."""
  x, weights = 3 + 2 * normal(4, 2, 3, 3, 5), normal(4, 2, 3, 3, 5, seed=1)
  settings = {"axis_name": "data", "axis_index_groups": axis_groups}
  settings |= {"use_running_average": False, "momentum": 0.9}
  ours = BatchNorm(**settings, unbiased=unbiased)
  variables = ours.init(jax.random.key(0), x[0])  # Outside of the named axis.

  def run(norm):
    def loss(params, x, weights):
      y, updates = norm.apply(
        variables | {"params": params}, x, mutable=["batch_stats"]
      )
      return (y * weights).sum(), (y, updates["batch_stats"])

    grad = partial(jax.grad(loss, (0, 1), has_aux=True), variables["params"])
    if kind == "vmap":
      return jax.jit(jax.vmap(grad, axis_name="data"))(x, weights)
    if kind == "pmap":
      return jax.pmap(grad, "data", devices=jax.devices()[:4])(x, weights)

    def on_shard(x, weights):
      return jax.tree.map(lambda leaf: leaf[None], grad(x[0], weights[0]))

    mesh = create_mesh(jax.devices()[:4])
    split = jax.P("data")
    step = jax.shard_map(on_shard, mesh=mesh, in_specs=split, out_specs=split)
    return jax.jit(step)(x, weights)

  found, wanted = run(ours), run(nn.BatchNorm(**settings))
  if unbiased:
    number = 2 * 3 * 3 * (4 if axis_groups is None else 2)
    stats = wanted[1][1]
    stats["var"] = 0.9 + (stats["var"] - 0.9) * number / (number - 1)
  close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, found, wanted)
