"""Sharpness-aware minimisation: the gradient of an update, and nothing else, moves."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal

from resnet_jax.training import steps
from resnet_jax.training.sharpness import climb
from resnet_jax.training.state import TrainState
from resnet_jax.training.tasks import Classification

BATCH = {
  "image": jnp.arange(48, dtype=jnp.uint8).reshape(4, 2, 2, 3),
  "label": jnp.array([0, 1, 2, 0]),
  "mask": jnp.array([True, True, False, True]),
}
PARAMS = {"stem": {"scale": normal(12)}, "head": {"kernel": normal(12, 3)}}


def apply_fn(variables, images, train=True, mutable=(), rngs=None):
  """A network whose statistics are its parameters."""
  scale, kernel = (jax.tree.leaves(variables["params"][g])[0] for g in PARAMS)
  logits = (scale[None] * images.reshape(len(images), -1)) @ kernel
  return logits, {"batch_stats": {"mean": scale}}


def preprocess(images, key):
  return images / 50.0


def train_step(**options):
  state = TrainState.create(
    apply_fn=apply_fn,
    tx=optax.sgd(1.0),
    params=PARAMS,
    batch_stats={"mean": jnp.zeros(12)},
    key=jax.random.key(0),
  )
  options = {"task": Classification(3), "preprocess": preprocess} | options
  return steps.train_step(state, BATCH, **options)


def gradient(params):
  """Returns the gradient of the mean loss of the three valid images."""

  def loss(params):
    logits, _ = apply_fn({"params": params}, preprocess(BATCH["image"], None))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["label"])
    return losses[jnp.array([0, 1, 3])].mean()

  return jax.grad(loss)(params)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("frozen", [(), ("stem",)])
def test_an_update_has_the_gradient_of_the_moved_parameters(accumulate, frozen):
  g = gradient(PARAMS)
  if frozen:
    g["stem"] = jax.tree.map(jnp.zeros_like, g["stem"])
  norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(g)))
  moved = jax.tree.map(lambda w, g: w + 0.5 * g / norm, PARAMS, g)
  expected = jax.tree.map(jnp.subtract, PARAMS, gradient(moved))
  perturb = partial(climb, rho=0.5, frozen=frozen)
  state, metrics = train_step(perturb=perturb, accumulate=accumulate)
  chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-6)
  plain, plain_metrics = train_step(accumulate=accumulate)
  chex.assert_trees_all_equal(state.batch_stats, plain.batch_stats)
  chex.assert_trees_all_equal(metrics, plain_metrics)
  assert not np.allclose(state.params["head"]["kernel"], plain.params["head"]["kernel"])


def test_a_gradient_of_zero_moves_nothing():
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  chex.assert_trees_all_equal(climb(PARAMS, zeros, rho=0.5), PARAMS)
