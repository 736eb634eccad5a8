"""The project's convolution against `lax.conv` and its derived gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.kernels import conv, traced_with, use
from resnet_jax.runtime.compilation import jit_once

# size, kernel, stride, padding: the shapes of all ResNets, and odd ones.
SHAPES = [
  (16, 3, 1, 1),
  (16, 3, 2, 1),
  (15, 3, 2, 1),
  (32, 7, 2, 3),
  (16, 1, 1, 0),
  (15, 1, 2, 0),
  (11, 5, 3, 2),
  (10, 3, 2, 0),
]
# size, kernel, stride, padding, groups; 32 groups become several dense convolutions.
GROUPED = [(8, 3, 1, 1, 2), (9, 3, 2, 1, 4), (8, 1, 2, 0, 2), (8, 3, 1, 1, 32)]


def make_arrays(size, taps, stride, padding, groups=1):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, size, size, 3 * groups)).astype(np.float32)
  kernel = rng.normal(size=(taps, taps, 3, 5 * groups)).astype(np.float32)
  settings = {"stride": stride, "padding": padding, "groups": groups}
  y = jax.eval_shape(partial(conv.conv2d, **settings), x, kernel)
  return x, kernel, rng.normal(size=y.shape).astype(np.float32)


def lax_conv(x, kernel, stride, padding, groups=1):
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      [(padding, padding)] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  # Group by group: a CPU has no fast kernel for gradients of grouped convolutions.
  parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
  return jnp.concatenate([convolve(*part) for part in parts], axis=-1)


def lax_gradients(x, kernel, dy, **settings):
  return jax.vjp(partial(lax_conv, **settings), x, kernel)[1](dy)


@pytest.mark.parametrize(("size", "taps", "stride", "padding"), SHAPES)
def test_canonical_gradients_equal_lax_to_the_bit(size, taps, stride, padding):
  x, kernel, dy = make_arrays(size, taps, stride, padding)
  settings = {"stride": stride, "padding": padding}
  ours = jax.jit(partial(conv._canonical_gradients, **settings))(x, kernel, dy)
  theirs = jax.jit(partial(lax_gradients, **settings))(x, kernel, dy)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("size", "taps", "stride", "padding", "groups"),
  [(*shape, 1) for shape in SHAPES] + GROUPED,
)
def test_conv2d_and_its_gradients_inside_a_scan(size, taps, stride, padding, groups):
  x, kernel, dy = make_arrays(size, taps, stride, padding, groups)
  settings = {"stride": stride, "padding": padding, "groups": groups}

  def in_scan(x, kernel, dy):
    def body(_, dy):
      y, gradients = jax.vjp(partial(conv.conv2d, **settings), x, kernel)
      return None, (y, *gradients(dy))

    return jax.lax.scan(body, None, dy[None])[1]

  ours = jit_once(traced_with("xla", in_scan))(x, kernel, dy)
  theirs = jit_once(partial(lax_conv, **settings))(x, kernel)
  theirs = theirs, *jit_once(partial(lax_gradients, **settings))(x, kernel, dy)
  for a, b in zip(ours, theirs, strict=True):
    # Training runs 1x1 kernels as matrix products and groups as dense convolutions, so
    # the results are equal except for rounding.
    np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-4)


def test_gradient_on_cpu_has_only_canonical_convolutions():
  # Other convolutions are 20 times slower inside loops on a CPU.
  def loss(x, kernel):
    return conv.conv2d(x, kernel, 2, 1).sum()

  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
  gradients = traced_with("xla", jax.grad(loss, (0, 1)))
  text = jax.jit(gradients).lower(x, kernel).as_text("hlo")
  orders = {
    line.split("dim_labels=")[1].split(",")[0]
    for line in text.splitlines()
    if "dim_labels=" in line
  }
  assert orders == {"b01f_01io->b01f"}


def test_other_backends_keep_their_own_gradient():
  def loss(x, kernel):
    return conv.conv2d(x, kernel, 1, 1).sum()

  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
  gradients = traced_with("xla", jax.grad(loss, (0, 1)))
  traced = jax.jit(gradients).trace(x, kernel)
  text = traced.lower(lowering_platforms=("tpu",)).as_text("hlo")
  assert "dim_labels=f01b_i01o->01bf" in text


@pytest.mark.parametrize("choice", ["plain", "xla", "native"])
@pytest.mark.parametrize(
  ("sizes", "taps", "padding", "groups", "dilation"),
  [
    ((12, 12), 3, 2, 1, 2),
    ((11, 7), 3, 4, 1, 4),  # Every 4th of 7 columns: 2, fewer than 3 taps.
    ((9, 10), 3, 0, 1, 3),
    ((10, 8), 5, 2, 1, 2),
    ((8, 9), 3, 2, 2, 2),
  ],
)
def test_dilated_convolution_is_lax(sizes, taps, padding, groups, dilation, choice):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *sizes, 4)).astype(np.float32)
  kernel = rng.normal(size=(taps, taps, 4 // groups, 6)).astype(np.float32)

  def reference(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      [(padding, padding)] * 2,
      rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )

  def ours(x, kernel):
    with use(choice):
      return conv.conv2d(x, kernel, 1, padding, groups, dilation)

  def values_and_gradients(function):
    y, gradients = jax.vjp(function, x, kernel)
    return y, *gradients(jnp.sin(jnp.arange(y.size)).reshape(y.shape))

  results = (jax.jit(partial(values_and_gradients, f))() for f in (ours, reference))
  for a, b in zip(*results, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
