"""Learning rates at the steps that matter, and one step of each optimiser."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal

from resnet_jax.config import Config, OptimConfig
from resnet_jax.config.plan import Plan
from resnet_jax.config.validation import validate
from resnet_jax.models.scan_layout import to_named
from resnet_jax.runtime.errors import UserError
from resnet_jax.training.optimizer import (
  create_optimizer,
  create_schedule,
  kernels_only,
)

PLAN = Plan(
  num_steps=100,
  steps_per_epoch=10,
  steps_per_call=1,
  warmup_steps=10,
  decay_steps=(50, 75),
  log_every=1,
  eval_every=1,
  save_every=0,
)


def values(config, plan, steps):
  schedule = create_schedule(config, plan, batch_size=128)
  return [float(schedule(step)) for step in steps]


def test_linear_warmup_then_step_decay():
  rates = values(OptimConfig(), PLAN, [0, 5, 9, 10, 49, 50, 74, 75, 99])
  expected = [0, 0.05, 0.09, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_constant_warmup_as_for_resnet110():
  config = OptimConfig(warmup="constant", warmup_learning_rate=0.01)
  rates = values(config, PLAN, [0, 9, 10, 49, 50, 75, 99])
  expected = [0.01, 0.01, 0.1, 0.1, 0.01, 0.001, 0.001]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_no_warmup_and_no_boundary_is_constant():
  plan = dataclasses.replace(PLAN, warmup_steps=0, decay_steps=())
  np.testing.assert_allclose(values(OptimConfig(), plan, [0, 50, 99]), 0.1, rtol=1e-6)


def test_poly_is_that_of_pytorch():
  torch = pytest.importorskip("torch")
  plan = dataclasses.replace(PLAN, decay_steps=())
  rates = values(OptimConfig(schedule="poly"), plan, [5, 10, 55, 99, 100])
  theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
  schedule, expected = torch.optim.lr_scheduler.PolynomialLR(theirs, 90, 0.9), []
  for _ in range(91):
    expected += schedule.get_last_lr()
    theirs.step()
    schedule.step()
  assert rates[0] == pytest.approx(0.05)  # Warmup.
  np.testing.assert_allclose(rates[1:], np.array(expected)[[0, 45, 89, 90]], 1e-5)


def test_cosine_starts_at_the_peak_and_ends_near_zero():
  plan = dataclasses.replace(PLAN, decay_steps=())
  rates = values(OptimConfig(schedule="cosine"), plan, [0, 10, 55, 99, 100])
  last = 0.05 * (1 + np.cos(np.pi * 89 / 90))
  np.testing.assert_allclose(rates, [0, 0.1, 0.05, last, 0], rtol=1e-4, atol=1e-9)


def test_the_head_is_trained_alone_at_first_and_then_everything():
  config = OptimConfig(warmup="head", weight_decay=0.0, clip_norm=1.0)
  rates = values(config, PLAN, [0, 9, 10, 49, 50])
  np.testing.assert_allclose(rates, [0.1, 0.1, 0.1, 0.1, 0.01], rtol=1e-6)
  params = {"stem": {"kernel": jnp.ones(4)}, "head": {"kernel": jnp.ones(4)}}
  gradients = jax.tree.map(lambda x: 3 * x, params)

  def train(tx, params, gradients, steps):
    opt_state, falls = tx.init(params), []
    for _ in range(steps):
      updates, opt_state = tx.update(gradients, opt_state, params)
      params = optax.apply_updates(params, updates)
      falls.append(jax.tree.map(lambda x: float(-x[0]), updates))
    return falls

  rate = optax.constant_schedule(0.1)
  falls = train(create_optimizer(config, rate, warmup_steps=2), params, gradients, 4)
  assert [fall["stem"]["kernel"] for fall in falls[:2]] == [0, 0]
  alone = {"head": params["head"]}, {"head": gradients["head"]}
  # Only the head counts in the gradient norm for clipping.
  expected = train(create_optimizer(config, rate, warmup_steps=2), *alone, 2)
  for fall, only in zip(falls, expected, strict=False):
    np.testing.assert_allclose(
      fall["head"]["kernel"], only["head"]["kernel"], rtol=1e-6
    )
  first = 0.1 * 3 / np.sqrt(8 * 9)  # All eight gradients count; there is no momentum.
  np.testing.assert_allclose(falls[2]["stem"]["kernel"], first, rtol=1e-6)
  with pytest.raises(UserError, match="needs a network with a part called 'head'"):
    create_optimizer(config, rate, warmup_steps=2).init({"stem": params["stem"]})


def test_learning_rate_scales_with_the_batch():
  config = OptimConfig(reference_batch_size=512, batch_scaling="sqrt")
  np.testing.assert_allclose(values(config, PLAN, [10]), [0.05], rtol=1e-6)
  config = OptimConfig(reference_batch_size=256)
  np.testing.assert_allclose(values(config, PLAN, [20]), 0.05, rtol=1e-6)


PARAMS = {
  "conv": {"kernel": jnp.full((2, 2), 2.0)},
  "bn": {"scale": jnp.full((2,), 2.0), "bias": jnp.full((2,), 2.0)},
}


def test_weight_decay_is_for_kernels_only():
  assert kernels_only(PARAMS) == {
    "conv": {"kernel": True},
    "bn": {"scale": False, "bias": False},
  }


def changes(config, gradient, steps=1, params=PARAMS):
  """Returns by how much each leaf fell, with a learning rate of 0.1."""
  tx = create_optimizer(config, optax.constant_schedule(0.1))
  opt_state, new = tx.init(params), params
  for _ in range(steps):
    grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
    updates, opt_state = tx.update(grads, opt_state, new)
    new = optax.apply_updates(new, updates)
  fall = jax.tree.map(lambda a, b: float((a - b)[0].min()), params, new)
  return fall["conv"]["kernel"], fall["bn"]["scale"]


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    # lr (g + wd w) on kernels, lr g elsewhere.
    (OptimConfig(weight_decay=0.5), (0.1 * (1 + 1), 0.1)),
    (OptimConfig(weight_decay=0.5, decay_all=True), (0.2, 0.2)),
    (OptimConfig(weight_decay=0.0, nesterov=True), (0.19, 0.19)),
    # The gradient's norm is sqrt(8).
    (OptimConfig(weight_decay=0.0, clip_norm=1.0), (0.1 / 8**0.5,) * 2),
  ],
)
def test_first_step(config, expected):
  np.testing.assert_allclose(changes(config, 1.0), expected, rtol=1e-5)


def test_adam_adds_weight_decay_to_the_gradient_and_adamw_to_the_step():
  # Adam's first step is lr against the sign of the gradient, which is -0.5 + 0.5 * 2.
  adam = changes(OptimConfig(name="adam", weight_decay=0.5), -0.5)
  np.testing.assert_allclose(adam, (0.1, -0.1), rtol=1e-5)
  # AdamW's first step adds lr wd w = 0.1 * 0.5 * 2.
  adamw = changes(OptimConfig(name="adamw", weight_decay=0.5), -0.5)
  np.testing.assert_allclose(adamw, (-0.1 + 0.1, -0.1), rtol=1e-4, atol=1e-6)


def test_lars_and_lamb_scale_a_step_by_the_ratio_of_norms():
  # The kernel's norm is 4. The norm of g + wd w = 1 + 0.5 * 2 over four elements is 4.
  lars = changes(OptimConfig(name="lars", weight_decay=0.5), 1.0)
  # The parameters are 2, so their changes are rounded to 1e-7.
  np.testing.assert_allclose(lars, (0.1 * 0.001 * 2, 0.1), rtol=1e-5, atol=1e-7)
  # Adam's first step is 1. Weight decay makes it 2 for the kernel, whose values are 2.
  # The scale has no decay: its step is 1, and its values are twice as large.
  lamb = changes(OptimConfig(name="lamb", weight_decay=0.5), 3.0)
  np.testing.assert_allclose(lamb, (0.1 * 2, 0.1 * 2), rtol=1e-4)
  lamb = changes(OptimConfig(name="lamb", weight_decay=1.5), 3.0)
  np.testing.assert_allclose(lamb, (0.1 * 4 * 0.5, 0.1 * 2), rtol=1e-4)


def test_a_run_shorter_than_its_warmup_only_warms_up():
  plan = dataclasses.replace(PLAN, num_steps=5, decay_steps=())
  rates = values(OptimConfig(schedule="cosine"), plan, [0, 4])
  np.testing.assert_allclose(rates, [0, 0.04], rtol=1e-6)


def test_momentum_accumulates_as_pytorch_has_it():
  # v = 0.9 v + g: 1, then 1.9.
  config = OptimConfig(weight_decay=0.0)
  np.testing.assert_allclose(changes(config, 1.0, steps=2), 0.1 * 2.9, rtol=1e-5)


def first_update(config, gradients, params):
  tx = create_optimizer(config, optax.constant_schedule(0.1))
  return tx.update(gradients, tx.init(params), params)[0]


def test_muon_makes_the_update_of_a_convolution_orthonormal_and_the_rest_is_adam():
  shapes = {
    "stem": {"conv": {"kernel": (3, 3, 2, 8), "bias": (8,)}},
    "head": {"kernel": (8, 4), "bias": (4,)},
  }
  gradients = jax.tree.map(
    lambda shape: 5 * normal(*shape), shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
  params = jax.tree.map(jnp.ones_like, gradients)
  config = OptimConfig(name="muon", weight_decay=0.0)
  updates = first_update(config, gradients, params)
  matrix = gradients["stem"]["conv"]["kernel"].reshape(18, 8)
  left, _, right = np.linalg.svd(matrix, full_matrices=False)
  # In the bases of the gradient, an orthonormal matrix is the identity.
  found = left.T @ updates["stem"]["conv"]["kernel"].reshape(18, 8) @ right.T
  found /= -0.1 * 0.2 * 18**0.5
  np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-5)
  assert np.diag(found).min() > 0.6 and np.diag(found).max() < 1.3
  adam = first_update(OptimConfig(name="adamw", weight_decay=0.0), gradients, params)
  del updates["stem"]["conv"]["kernel"], adam["stem"]["conv"]["kernel"]
  jax.tree.map(np.testing.assert_array_equal, updates, adam)


def test_muon_updates_each_scanned_block_by_itself():
  params = {"stage1": {"blocks": {"conv": {"kernel": normal(2, 3, 3, 2, 8)}}}}
  config = OptimConfig(name="muon")
  together = to_named(first_update(config, params, params))
  alone = first_update(config, to_named(params), to_named(params))
  jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), together, alone)


@pytest.mark.parametrize("decay_all", [False, True])
def test_muon_decays_what_the_settings_say(decay_all):
  params = {
    "conv": {"kernel": jnp.full((1, 1, 2, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "head": {"kernel": jnp.full((2, 2), 2.0)},
  }
  config = OptimConfig(name="muon", weight_decay=0.5, decay_all=decay_all)
  updates = first_update(config, jax.tree.map(jnp.zeros_like, params), params)
  for group, name in (("conv", "kernel"), ("head", "kernel"), ("conv", "bias")):
    expected = -0.1 * 0.5 * 2 * (name == "kernel" or decay_all)
    np.testing.assert_allclose(updates[group][name], expected, rtol=1e-6)


@pytest.mark.parametrize(
  "change",
  [
    {"schedule": "cosine"},
    {"decay_steps": (5,)},
    {"decay_epochs": (5.0,)},
    {"ema_decay": 0.9},
    {"swa_start_steps": 2},
    {"nesterov": True},
    {"momentum": 0.0},
  ],
)
def test_what_a_schedule_free_optimiser_replaces_is_refused(change):
  config = Config(optim=OptimConfig(name="schedule_free_sgd", **change))
  with pytest.raises(UserError, match=rf"optim\.{next(iter(change))}=.* must be"):
    validate(config)
