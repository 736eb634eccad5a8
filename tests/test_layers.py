"""Max-pool, shortcuts, blocks, squeeze-excite and stochastic depth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from flax import linen as nn

from resnet_jax.models import layers, pooling, shortcuts
from resnet_jax.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  Noise,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet_jax.models.norms import BatchNorm


@pytest.mark.parametrize("size", [7, 8, 113])
def test_max_pool_equals_flax(size):
  x = normal(2, size, size, 3)
  weights = normal(*jax.eval_shape(pooling.max_pool_3x3, x).shape, seed=1)

  def ours(x):
    y = pooling.max_pool_3x3(x)
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
  x = normal(2, 5, 5, 4)
  shortcut = shortcuts.IdentityShortcut(8, 2)
  residual = jnp.zeros((2, 3, 3, 8))
  y, variables = shortcut.init_with_output(jax.random.key(1), x, residual)
  assert not variables
  np.testing.assert_array_equal(y[..., 2:6], x[:, ::2, ::2])
  assert not y[..., :2].any() and not y[..., 6:].any()


@pytest.mark.parametrize("option", ["A", "B", "D"])
def test_shortcuts_are_the_identity_where_the_shape_stays(option):
  x, residual = normal(2, 2, 5, 5, 4)
  shortcut = shortcuts.SHORTCUTS[option](4, 1)
  y, variables = shortcut.init_with_output(jax.random.key(1), x, residual)
  assert not variables
  np.testing.assert_array_equal(y, x + residual)


def test_option_c_projects_where_the_shape_stays():
  x = jnp.ones((2, 5, 5, 4))
  norm = partial(BatchNorm, use_running_average=False)
  variables = shortcuts.SHORTCUTS["C"](4, 1, norm_cls=norm).init(
    jax.random.key(1), x, x
  )
  assert variables["params"]["conv"]["kernel"].shape == (1, 1, 4, 4)


def test_option_d_averages_before_it_projects():
  # At the border of an odd size, the average counts only existing pixels.
  x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  shortcut = shortcuts.SHORTCUTS["D"](1, 2, norm_cls=None)
  residual = jnp.zeros((1, 2, 2, 1))
  variables = {"params": {"conv": {"kernel": jnp.ones((1, 1, 1, 1))}}}
  y = shortcut.apply(variables, x, residual)
  np.testing.assert_allclose(y.ravel(), [2, 3.5, 6.5, 8])


@pytest.mark.parametrize("bias", [-100.0, 0.0, 100.0])
def test_highway_gate_mixes_input_and_residual(bias):
  x, residual = normal(2, 2, 5, 5, 4)
  shortcut = shortcuts.HighwayShortcut(4, 1)
  variables = {
    "params": {"gate": {"kernel": jnp.zeros((4, 4)), "bias": bias * jnp.ones(4)}}
  }
  y = shortcut.apply(variables, x, residual)
  share = jax.nn.sigmoid(bias)
  expected = share * residual + (1 - share) * x
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_squeeze_excite_scales_channels_by_a_function_of_their_means():
  x = normal(2, 5, 5, 256)
  y, variables = layers.SqueezeExcite().init_with_output(jax.random.key(1), x)
  first, second = (variables["params"][name] for name in ("fc1", "fc2"))
  assert first["kernel"].shape == (256, 16)
  hidden = nn.relu(x.mean((1, 2)) @ first["kernel"] + first["bias"][None])
  scale = nn.sigmoid(hidden @ second["kernel"] + second["bias"][None])
  np.testing.assert_allclose(y, x * scale[:, None, None], rtol=1e-5, atol=1e-6)


def test_squeeze_excite_rounds_its_width_as_timm_does():
  # The channels of timm's basic blocks, and one that is rounded up.
  for channels, hidden in ((64, 8), (128, 8), (192, 16), (512, 32)):
    x = jax.ShapeDtypeStruct((1, 2, 2, channels), jnp.float32)
    shapes = jax.eval_shape(layers.SqueezeExcite().init, jax.random.key(0), x)
    assert shapes["params"]["fc1"]["kernel"].shape == (channels, hidden)


def test_a_standardised_kernel_has_mean_0_and_variance_1():
  kernel = 3 * normal(3, 3, 8, 5) + 1
  standardised = layers.StandardizedConv(5, 3).standardize(kernel)
  np.testing.assert_allclose(standardised.mean((0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(standardised.var((0, 1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_a_blur_is_the_mean_of_mirrored_neighbours(size):
  x = normal(2, size, size, 3)
  mode = {"mode": "reflect"} if size > 1 else {"mode": "edge"}
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), **mode)
  weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
  expected = sum(
    weights[i, j] * padded[:, i : i + size : 2, j : j + size : 2]
    for i in range(3)
    for j in range(3)
  )
  np.testing.assert_allclose(pooling.blur_pool(x, 2), expected, rtol=0, atol=1e-6)


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 2, 3))
  y = layers.drop_path(x, jax.random.key(0), jnp.float32(0.25))
  values = np.asarray(y[:, 0, 0, 0])
  np.testing.assert_array_equal(
    y, np.broadcast_to(values[:, None, None, None], y.shape)
  )
  assert set(np.unique(values)) == {0, np.float32(1 / 0.75)}
  assert abs(values.mean() - 1) < 0.05


def test_a_dropped_block_is_its_shortcut():
  x = normal(2, 4, 4, 8)
  block = BasicBlock(8, norm_cls=partial(BatchNorm, use_running_average=True))
  noise = Noise(jax.random.key(2), jnp.float32(1 - 1e-7))
  variables = block.init(jax.random.key(1), x)
  np.testing.assert_array_equal(block.apply(variables, x, noise), nn.relu(x))


@pytest.mark.parametrize("block", [PreActBasicBlock, PreActBottleneckBlock])
def test_preactivated_block_is_exactly_the_identity_at_init(block):
  x = normal(2, 4, 4, 8 * block.expansion)
  norm = partial(BatchNorm, use_running_average=True)
  y, _ = block(8, zero_init=True, norm_cls=norm).init_with_output(jax.random.key(1), x)
  np.testing.assert_array_equal(y, x)


def test_dropout_zeroes_values_between_the_convolutions_in_training_only():
  x = normal(2, 4, 4, 8)
  norm = partial(BatchNorm, use_running_average=True)
  block = PreActBasicBlock(8, dropout=0.5, norm_cls=norm)
  variables = block.init(jax.random.key(1), x)
  plain = PreActBasicBlock(8, norm_cls=norm).apply(variables, x)
  np.testing.assert_array_equal(block.apply(variables, x), plain)
  one, two = (block.apply(variables, x, Noise(jax.random.key(i))) for i in (3, 4))
  assert not np.allclose(one, plain) and not np.allclose(one, two)


@pytest.mark.parametrize("on_1x1", [True, False])
def test_v1_has_its_stride_on_the_first_1x1_convolution(on_1x1):
  norm = partial(BatchNorm, use_running_average=True)
  parts = {"norm_cls": norm, "shortcut_cls": shortcuts.NoShortcut}
  block = BottleneckBlock(4, 2, stride_on_1x1=on_1x1, **parts)
  x = jnp.zeros((1, 8, 8, 3))
  run = partial(block.init_with_output, jax.random.key(0), x, mutable=True)
  _, state = jax.eval_shape(partial(run, capture_intermediates=True))
  sizes = [
    state["intermediates"][f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)
  ]
  assert sizes == ([4, 4, 4] if on_1x1 else [8, 4, 4])


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_residual_block_is_identity_at_init(block):
  features = 8
  x = normal(2, 4, 4, features * block.expansion)
  norm = partial(BatchNorm, use_running_average=True)
  module = block(features, zero_init=True, norm_cls=norm)
  y, _ = module.init_with_output(jax.random.key(1), x)
  np.testing.assert_array_equal(y, nn.relu(x))


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_plain_block_is_its_convolutions(block):
  x = normal(2, 4, 4, 8)
  norm = partial(BatchNorm, use_running_average=True)
  module = block(8, 2, shortcut_cls=shortcuts.NoShortcut, zero_init=True, norm_cls=norm)
  y, _ = module.init_with_output(jax.random.key(1), x)
  np.testing.assert_array_equal(y, np.zeros((2, 2, 2, 8 * block.expansion)))


def test_convolution_starts_he_normal_with_fan_out():
  x = jnp.zeros((1, 8, 8, 16))
  kernel = layers.Conv(256, 3).init(jax.random.key(0), x)["params"]["kernel"]
  assert abs(float(kernel.std()) / np.sqrt(2 / (256 * 9)) - 1) < 0.02


def test_a_convolution_has_no_stride_and_dilation_at_once():
  with pytest.raises(ValueError, match="dilation=2 with stride=2; one must be 1"):
    conv = layers.Conv(8, 3, stride=2, dilation=2)
    conv.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
