"""Updates give the same numbers for any split into calls, parts and devices."""

import dataclasses
import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from resnet_jax import kernels
from resnet_jax.data.batches.preprocess import preprocess
from resnet_jax.data.pipelines.resident import ResidentDataset
from resnet_jax.data.sources.built_in import load_synthetic
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.registry import create_model
from resnet_jax.runtime.mesh import (
  create_mesh,
  replicated,
  split_over_devices,
  split_updates,
)
from resnet_jax.training import batch_stats, eval_steps, steps
from resnet_jax.training.averages import Ema
from resnet_jax.training.state import StateInit, TrainState
from resnet_jax.training.tasks import Classification

BATCH = 16


class Setup:
  """A small net on synthetic images over some devices."""

  def __init__(
    self,
    devices=1,
    size=48,
    dtype=jnp.float32,
    stages=(1, 1, 1),
    groups=1,
    shard_state=False,
    **options,
  ):
    mesh = create_mesh(jax.devices()[:devices])
    source = load_synthetic("train", 8, size)
    self.dataset = ResidentDataset(source, BATCH, mesh)
    norm = partial(BatchNorm, groups=groups)
    model = create_model("resnet8", dtype=dtype).clone(
      norm_cls=norm, stage_sizes=stages
    )
    split = partial(split_over_devices, mesh=mesh) if shard_state else None
    sharding, tx = replicated(mesh), optax.sgd(0.02, 0.9)
    if shard_state:
      tx = split_updates(tx, mesh)
    init = StateInit(model, tx, (8, 8, 3), sharding, shard_opt_state=split)
    self.state = init(jax.random.key(1))
    kwargs = {
      "preprocess": partial(preprocess, padding=1, flip=True, mean=(0.5,), std=(0.25,)),
      "take_batch": self.dataset.take_batch,
      "task": Classification(10, label_smoothing=0.1),
      "kernel_choice": kernels.resolve("auto"),
      "sharding": replicated(mesh),
    }
    options = {"state_sharding": init.sharding()} | options
    self.train_chunk = steps.compile_train_chunk(**options, **kwargs)
    self.eval_chunk = eval_steps.compile_eval_chunk(apply_fn=model.apply, **kwargs)
    feeds = [feed for feed, _ in self.dataset.eval_chunks()]
    order = jnp.concatenate([feed.order for feed in feeds])
    self.feed, self.batches = dataclasses.replace(feeds[0], order=order), len(feeds)

  def copy(self):
    # `train_chunk` consumes the state that it gets.
    return jax.tree.map(jnp.copy, self.state)

  def train(self, *counts):
    state, total = self.copy(), 0.0
    for count in counts:
      state, metrics = self.train_chunk(state, self.feed, count)
      total += float(metrics["count"])
    return state, total


@pytest.fixture(scope="module")
def one():
  return Setup()


def test_one_call_of_five_equals_five_calls_of_one_to_the_bit(one):
  chex.assert_trees_all_equal(one.train(5), one.train(1, 1, 1, 1, 1))
  chex.assert_trees_all_equal(one.train(5), one.train(2, 3))


def test_a_call_of_no_steps_changes_nothing(one):
  state, count = one.train(0)
  assert count == 0
  chex.assert_trees_all_equal(state, one.state)


def test_metrics_are_sums_over_the_call(one):
  assert one.train(5)[1] == 5 * BATCH


def test_step_counts_completed_updates(one):
  assert int(one.train(3, 2)[0].step) == 5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_all_that_is_trained_stays_float32(dtype):
  setup = Setup(dtype=dtype)
  state, _ = jax.eval_shape(setup.train_chunk, setup.state, setup.feed, 1)
  for leaf in jax.tree.leaves((state.variables, state.opt_state)):
    assert leaf.dtype == jnp.float32


def test_training_lowers_the_loss_and_evaluation_sees_it(one):
  before = one.eval_chunk(one.state.variables, one.feed, one.batches)
  after = one.eval_chunk(one.train(100)[0].variables, one.feed, one.batches)
  assert float(after["loss"]) < 0.5 * float(before["loss"])
  assert float(after["count"]) == 48


def test_any_count_is_the_same_program(one):
  one.train(1)
  size = one.train_chunk._cache_size()
  one.train(2, 3, 0)
  assert one.train_chunk._cache_size() == size


def test_train_step_is_traced_once():
  setup = Setup()
  traced = chex.assert_max_traces(steps.train_step, n=1)
  task = Classification(10)
  step = partial(traced, task=task, preprocess=lambda x, key: x / 255.0)
  chunk = partial(
    steps.train_chunk,
    train_step=step,
    take_batch=setup.dataset.take_batch,
    task=task,
  )
  run = jax.jit(chunk)
  for count in (1, 2):
    run(setup.state, setup.feed, count)


def assert_equal_but_for_rounding(state, expected):
  """Allows for 20 updates whose sums, in another order, are rounded differently."""
  trees = state.variables, expected.variables
  for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@functools.cache
def small_net_on_one_device(groups=1, accumulate=1):
  setup = Setup(stages=(1,), groups=groups, accumulate=accumulate)
  return setup.train(20)[0]


@pytest.mark.several_devices
@pytest.mark.parametrize(
  ("devices", "shard_state"), [(2, False), (4, True), (8, False)]
)
def test_any_number_of_devices_equals_one(devices, shard_state):
  state = Setup(devices, stages=(1,), shard_state=shard_state).train(20)[0]
  assert_equal_but_for_rounding(state, small_net_on_one_device())
  trace = state.opt_state[0].trace["stage1"]["block1"]["conv1"]["kernel"]
  share = devices if shard_state else 1
  assert trace.addressable_shards[0].data.size == trace.size / share
  kernel = state.params["stage1"]["block1"]["conv1"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size


@pytest.mark.several_devices
@pytest.mark.parametrize(("devices", "groups", "accumulate"), [(8, 4, 2)])
def test_groups_and_parts_are_the_same_on_any_number_of_devices(
  devices, groups, accumulate
):
  options = {"groups": groups, "accumulate": accumulate}
  state = Setup(devices, stages=(1,), **options).train(20)[0]
  assert_equal_but_for_rounding(state, small_net_on_one_device(**options))


def test_an_update_that_is_not_finite_is_skipped_and_counted():
  setup = Setup(stages=(1,), skip_nonfinite=True)
  state, metrics = setup.train_chunk(setup.copy(), setup.feed, 3)
  assert state.step == 3 and metrics["skipped_updates"] == 0
  assert_equal_but_for_rounding(state, Setup(stages=(1,)).train(3)[0])
  broken = state.replace(params=jax.tree.map(lambda x: x * 1e30, state.params))
  setup.state = jax.tree.map(jnp.copy, broken)
  state, metrics = setup.train_chunk(setup.copy(), setup.feed, 3)
  assert state.step == 6
  chex.assert_trees_all_equal(state.replace(step=broken.step), broken)
  assert {name: float(value) for name, value in metrics.items() if value} == {
    "skipped_updates": 3
  }


@pytest.mark.several_devices
@pytest.mark.parametrize("size", [5, 48, 50])
def test_evaluation_is_the_same_on_any_number_of_devices(one, size):
  results = []
  for devices in (1, 8):
    setup = Setup(devices, size)
    variables = jax.device_put(one.state.variables, setup.state.step.sharding)
    results.append(setup.eval_chunk(variables, setup.feed, setup.batches))
  assert float(results[0]["count"]) == size
  for name in ("count", "top1", "top5"):
    assert float(results[0][name]) == float(results[1][name])


def linear_state():
  """A state whose model is one matrix: quick to run without compiling."""

  def apply_fn(variables, images, train, mutable, rngs):
    del train, mutable
    pixels = images.reshape(len(images), -1)
    return pixels @ variables["params"]["kernel"], {"batch_stats": {}}

  return TrainState.create(
    apply_fn=apply_fn,
    tx=optax.sgd(0.1),
    params={"kernel": jnp.zeros((12, 3))},
    batch_stats={},
    key=jax.random.key(0),
  )


BATCH_OF_4 = {
  "image": jnp.arange(48, dtype=jnp.uint8).reshape(4, 2, 2, 3),
  "label": jnp.array([0, 1, 2, 0]),
  "mask": jnp.ones(4, bool),
}
# One update of the matrix.
train_step = partial(steps.train_step, task=Classification(3))


def test_each_step_has_its_own_key_and_the_same_one_each_time():
  seen = []

  def spy(images, key):
    seen.append(tuple(jax.random.key_data(key).tolist()))
    return images / 255.0

  for _ in range(2):
    state = linear_state()
    for _ in range(3):
      state, _ = train_step(state, BATCH_OF_4, preprocess=spy)
  assert len(set(seen)) == 3
  assert seen[:3] == seen[3:]


def test_gradient_is_of_the_mean_over_the_batch():
  double = jax.tree.map(lambda x: jnp.concatenate([x, x]), BATCH_OF_4)

  def update(batch):
    state, metrics = train_step(
      linear_state(), batch, preprocess=lambda x, key: x / 255.0
    )
    return state.params["kernel"], metrics

  (a, once), (b, twice) = update(BATCH_OF_4), update(double)
  np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  assert a.any()
  assert float(twice["loss"]) == pytest.approx(2 * float(once["loss"]))


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
  batch = BATCH_OF_4 | {"mask": jnp.array([True, True, False, True])}

  def update(accumulate):
    return train_step(
      linear_state(),
      batch,
      preprocess=lambda x, key: x / 255.0,
      accumulate=accumulate,
    )

  (whole, sums), (state, added) = update(1), update(parts)
  np.testing.assert_allclose(
    state.params["kernel"], whole.params["kernel"], rtol=1e-6, atol=1e-8
  )
  chex.assert_trees_all_close(added, sums, rtol=1e-6)
  assert float(added["count"]) == 3


def test_the_average_follows_the_parameters():
  state = linear_state()
  state = state.replace(ema=state.variables)
  average = np.zeros((12, 3))
  for step in range(1, 8):
    state, _ = train_step(
      state, BATCH_OF_4, preprocess=lambda x, key: x / 255.0, average=Ema(0.3)
    )
    decay = min(0.3, (1 + step) / (10 + step))
    average = decay * average + (1 - decay) * np.asarray(state.params["kernel"])
  np.testing.assert_allclose(state.ema["params"]["kernel"], average, rtol=1e-5)
  assert (average != np.asarray(state.params["kernel"])).any()


def test_mixed_targets_are_what_is_learned():
  def swap(key, images, targets):
    return images, jnp.roll(targets, 1, axis=-1)

  mixed, _ = train_step(
    linear_state(), BATCH_OF_4, preprocess=lambda x, key: x / 255.0, mix=swap
  )
  shifted = BATCH_OF_4 | {"label": (BATCH_OF_4["label"] + 1) % 3}
  plain, _ = train_step(linear_state(), shifted, preprocess=lambda x, key: x / 255.0)
  chex.assert_trees_all_equal(mixed.params, plain.params)


def test_precise_statistics_are_of_all_images_together(one):
  model = create_model("resnet8")

  def prepare(images, key=None):
    return images / 255.0

  chunk = batch_stats.compile_statistics_chunk(
    model=model,
    preprocess=prepare,
    take_batch=one.dataset.take_batch,
    sharding=one.state.step.sharding,
  )
  key = jax.random.key(0)
  variables = one.state.variables
  # In two calls, like the chunks of training.
  parts = [
    chunk(variables, one.feed, count, first, key) for count, first in [(1, 0), (2, 1)]
  ]
  sums = jax.tree.map(jnp.add, *parts)
  found = batch_stats.precise_statistics(sums, one.batches)
  chex.assert_trees_all_equal_structs(found, variables["batch_stats"])
  # The first norm's input does not depend on how the images are batched.
  conv = variables["params"]["stem"]["conv"]["kernel"]
  images = prepare(load_synthetic("train", 8, 48).images)
  x = jax.lax.conv_general_dilated(
    images, conv, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  stem = found["stem"]["bn"]
  np.testing.assert_allclose(stem["mean"], x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(stem["var"], x.var((0, 1, 2)), rtol=1e-4)


def test_precise_variance_of_a_channel_without_any_is_not_negative():
  c = jnp.linspace(5, 60, 1000)
  found = batch_stats.precise_statistics(
    {"mean": c + c + c, "var": c * c + c * c + c * c}, 3
  )
  assert found["var"].min() >= 0 and found["var"].max() < 1e-2


def test_the_first_state_is_made_from_any_kind_of_key():
  init = StateInit(nn.Dense(3), optax.sgd(0.1), (8, 8, 3), replicated(create_mesh()))
  typed, raw = init(jax.random.key(0)), init(jax.random.PRNGKey(0))
  chex.assert_trees_all_equal(typed.params, raw.params)
  other = init(jax.random.key(0, impl="rbg"))
  assert jax.random.key_impl(other.key) == "rbg"
  assert not np.array_equal(other.params["kernel"], typed.params["kernel"])
