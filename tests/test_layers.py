"""Max-pool, shortcuts and blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.models import layers
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock


@pytest.mark.parametrize("size", [7, 8, 113])
def test_max_pool_equals_flax(size):
  x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
  weights = jax.random.normal(jax.random.key(1), layers.max_pool_3x3(x).shape)

  def ours(x):
    y = layers.max_pool_3x3(x)
    return (y * weights).sum(), y

  def theirs(x):
    y = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    return (y * weights).sum(), y

  for a, b in zip(
    jax.grad(ours, has_aux=True)(x), jax.grad(theirs, has_aux=True)(x), strict=True
  ):
    # Where windows overlap, gradients are summed in another order.
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
  x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
  y, variables = layers.IdentityShortcut(8, 2).init_with_output(jax.random.key(1), x)
  assert not variables
  np.testing.assert_array_equal(y[..., 2:6], x[:, ::2, ::2])
  assert not y[..., :2].any() and not y[..., 6:].any()


def test_option_b_is_the_identity_where_the_shape_stays():
  x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
  shortcut = layers.ProjectionShortcut(4, 1)
  y, variables = shortcut.init_with_output(jax.random.key(1), x)
  assert not variables
  np.testing.assert_array_equal(y, x)


def test_option_c_projects_where_the_shape_stays():
  x = jnp.ones((2, 5, 5, 4))
  norm = partial(layers.BatchNorm, use_running_average=False)
  shortcut = layers.ProjectionShortcut(4, 1, always=True, norm=norm)
  variables = shortcut.init(jax.random.key(1), x)
  assert variables["params"]["conv"]["kernel"].shape == (1, 1, 4, 4)


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_residual_block_is_identity_at_init(block):
  features = 8
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, features * block.expansion))
  norm = partial(layers.BatchNorm, use_running_average=True)
  module = block(features, zero_init=True, norm=norm)
  y, _ = module.init_with_output(jax.random.key(1), x)
  np.testing.assert_array_equal(y, nn.relu(x))


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_plain_block_is_its_convolutions(block):
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
  norm = partial(layers.BatchNorm, use_running_average=True)
  module = block(8, 2, shortcut=layers.NoShortcut, zero_init=True, norm=norm)
  y, _ = module.init_with_output(jax.random.key(1), x)
  np.testing.assert_array_equal(y, np.zeros((2, 2, 2, 8 * block.expansion)))


def test_convolution_starts_he_normal_with_fan_out():
  x = jnp.zeros((1, 8, 8, 16))
  kernel = layers.Conv(256, 3).init(jax.random.key(0), x)["params"]["kernel"]
  assert abs(float(kernel.std()) / np.sqrt(2 / (256 * 9)) - 1) < 0.02
