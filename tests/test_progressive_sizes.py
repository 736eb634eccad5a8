"""Progressive resizing: each part of a run trains on images of its own size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import pixels
from rich.console import Console
from test_trainer import (
  assert_states_equal,
  die_after_saving,
  make_config,
  run,
)

from resnet_jax.analysis import lr_find
from resnet_jax.analysis.dryrun import describe_topology, rehearse
from resnet_jax.config import AugmentConfig, Config
from resnet_jax.config.plan import Plan
from resnet_jax.config.validation import validate
from resnet_jax.data.batches.preprocess import create_preprocess
from resnet_jax.runtime.errors import UserError
from resnet_jax.training import steps
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.trainer import train

SIZES = AugmentConfig(padding=1, flip=True, progressive_sizes=(4, 6, 8))


DEVICES = min(2, jax.device_count())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of 11 steps: 3 on images of 4 pixels, 4 of 6 pixels and 4 of 8 pixels.

  Returns its directory, its last state, and the number of updates and the size of each
  call of the compiled step.
  """
  workdir, calls = tmp_path_factory.mktemp("whole"), []
  config = make_config(augment=SIZES, precise_bn_batches=2)
  experiment = Experiment.create(config, devices=jax.devices()[:DEVICES])
  chunk = experiment.train_chunk

  def spy(state, feed, count, size):
    calls.append((count, size))
    return chunk(state, feed, count, size)

  experiment.train_chunk = spy
  state, _ = train(experiment, str(workdir), console=Console(quiet=True))
  return workdir, state, calls


def test_the_plan_has_equal_parts_and_no_call_crosses_a_change():
  config = Config(num_steps=11, batch_size=10, steps_per_call=5, augment=SIZES)
  plan = Plan.create(config, num_train_examples=1000)
  assert [plan.size_at(step) for step in range(11)] == [4] * 3 + [6] * 4 + [8] * 4
  assert [step for step in range(12) if plan.resizes_at(step)] == [3, 7]
  assert [step for step in range(1, 12) if plan.save_at(step)] == [3, 7, 11]
  calls, step = [], 0
  while step < plan.num_steps:
    calls.append(plan.call_end(step) - step)
    step += calls[-1]
  assert calls == [3, 4, 4]
  assert plan.longest_call >= max(calls)  # A streamed feed has room for so many.
  plain = Plan.create(dataclasses.replace(config, augment=AugmentConfig()), 1000)
  assert (plain.size_at(0), plain.size_at(10), plain.longest_call) == (0, 0, 5)


def seen_images(config: Config) -> list[tuple[tuple[int, ...], np.ndarray]]:
  """Trains, and returns what the network gets at each step: the images' shape, sum."""
  experiment = Experiment.create(config, devices=jax.devices()[:1])
  original, seen = experiment.preprocess, []

  def spy(images, key, *, size=0):
    made = original(images, key, size=size)
    jax.debug.callback(lambda x: seen.append((x.shape, np.asarray(x))), made)
    return made

  experiment.preprocess = spy
  state, step = experiment.initial_state(), 0
  plan = experiment.plan
  for end, feed, count in experiment.train_data.train_chunks(
    experiment.data_key, 0, plan
  ):
    state, _ = experiment.train_chunk(state, feed, count, plan.size_at(step))
    step = end
  jax.effects_barrier()
  return seen


def test_the_step_sees_each_batch_resized_as_jax_does():
  plain = AugmentConfig()
  config = make_config(augment=plain, num_steps=2)
  full = seen_images(config)
  config.augment = AugmentConfig(progressive_sizes=(3, 5))
  for (_, image), (shape, small), size in zip(
    full, seen_images(config), (3, 5), strict=True
  ):
    assert shape == (16, size, size, 3)
    grey_levels = (image + 1) * 127.5
    expected = jax.image.resize(grey_levels, shape, "linear", antialias=True)
    np.testing.assert_allclose((small + 1) * 127.5, jnp.round(expected), atol=1e-3)


def test_other_changes_act_on_the_resized_images():
  config = Config(augment=SIZES)
  images, key = pixels(4, 8, 8, 1), jax.random.key(0)
  preprocess = create_preprocess(config, (8, 8, 1))
  small = jax.image.resize(images.astype(jnp.float32), (4, 6, 6, 1), "linear")
  small = jnp.round(small).astype(jnp.uint8)
  np.testing.assert_array_equal(preprocess(images, key, size=6), preprocess(small, key))
  np.testing.assert_array_equal(
    preprocess(images, key, size=8), preprocess(images, key)
  )


def test_the_own_size_alone_is_the_program_of_a_run_without_the_setting():
  experiment = Experiment.create(make_config(), devices=jax.devices()[:1])
  chunks = experiment.train_data.train_chunks(experiment.data_key, 0, experiment.plan)
  args = experiment.state_init.shapes, next(chunks)[1], 1
  small, own, plain = (
    experiment.train_chunk.lower(*args, size).as_text() for size in (4, 8, 0)
  )
  assert own == plain != small


# Step 5 is inside the second part; step 3 is the change to it.
@pytest.mark.parametrize("last", [3, 5])
def test_a_run_resumed_in_any_part_ends_with_the_same_bits(whole, tmp_path, last):
  config = make_config(augment=SIZES, precise_bn_batches=2)
  config.checkpoint.every_steps = 5
  die_after_saving(last, config, tmp_path, DEVICES)
  state, _, shown = run(config, tmp_path, DEVICES)
  assert_states_equal(state, whole[1])
  assert (
    "size of the training images: 4 pixels to step 3, 6 pixels to step 7, 8 pixels to "
    "step 11"
  ) in shown


def test_each_size_is_compiled_by_a_call_of_no_step(whole):
  """The clock starts after such a call, so no measured time includes compilation."""
  _, _, calls = whole
  assert calls == [
    *[(0, 4), (3, 4)],
    *[(0, 6), (1, 6), (2, 6), (1, 6)],
    *[(0, 8), (1, 8), (3, 8)],
  ]


@pytest.mark.parametrize(
  ("augment", "message"),
  [
    ({"progressive_sizes": (4, 9)}, r"sizes=\(4, 9\) must be at most .* 8x8; lower"),
    ({"progressive_sizes": (4, 8), "padding": 4}, r"padding=4 must be less .*\(4, 8\)"),
  ],
)
def test_sizes_that_do_not_fit_the_images_are_refused(augment, message, tmp_path):
  with pytest.raises(UserError, match=message):
    run(make_config(augment=AugmentConfig(**augment)), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_other_wrong_sizes_are_refused():
  for sizes in ((8, 4), (4, 4), (0, 4)):
    with pytest.raises(UserError, match=r"must be increasing and > 0, such as \(128"):
      validate(make_config(augment=AugmentConfig(progressive_sizes=sizes)))
  config = make_config(augment=SIZES, num_steps=2)
  with pytest.raises(UserError, match="a run of at least 3 steps"):
    Plan.create(config, 70)


def test_the_length_of_a_run_may_not_change(whole):
  with pytest.raises(UserError, match="num_steps was 11 and is now 12"):
    run(make_config(augment=SIZES, precise_bn_batches=2, num_steps=12), whole[0])


def test_the_dry_run_counts_a_step_of_the_last_size():
  config = make_config(augment=AugmentConfig(progressive_sizes=(4, 8)))
  topology = describe_topology("cpu:1")
  whole = rehearse(config, topology).flops
  config.augment.progressive_sizes = (8,)
  assert rehearse(config, topology).flops == whole


def test_the_range_test_has_the_last_size(monkeypatch):
  sizes = []

  def compile_train_chunk(**_):
    def chunk(state, feed, count, size):
      sizes.append(size)
      return state, {"loss": jnp.float32(1), "count": jnp.float32(1)}

    return chunk

  monkeypatch.setattr(steps, "compile_train_chunk", compile_train_chunk)
  config = make_config(augment=SIZES)
  lr_find.find_learning_rate(config, lowest=1e-3, highest=1e-2, steps=3)
  assert sizes == [8, 8, 8]
