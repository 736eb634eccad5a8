"""The convolutions in C++ against XLA's, and what happens without a compiler."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from resnet_jax import kernels
from resnet_jax.kernels import choice, conv, native
from resnet_jax.models.norms import BatchNorm
from resnet_jax.runtime.errors import UserError

needs_compiler = pytest.mark.skipif(
  bool(native.why_not_loaded()), reason="needs a C++ compiler"
)

# Images, side, channels, features, taps, stride, padding.
SHAPES = [
  (2, 8, 16, 16, 3, 1, 1),
  (1, 9, 5, 48, 3, 1, 1),  # Odd sizes, one image.
  (3, 7, 64, 32, 3, 2, 1),
  (2, 10, 32, 64, 3, 2, 1),  # The last column is in no window.
  (1, 33, 3, 64, 7, 2, 3),  # The stem.
  (2, 5, 160, 128, 3, 1, 1),  # A gradient that is split by channels,
  (3, 7, 400, 528, 1, 1, 0),  # and by features; in blocks of some images.
  (2, 6, 8, 16, 3, 1, 0),
  (2, 6, 8, 16, 5, 1, 2),
  (1, 4, 8, 32, 1, 2, 0),
  (2, 1, 8, 16, 3, 1, 1),
  (1, 70, 70, 16, 3, 1, 1),  # Some blocks of rows.
  (4, 8, 32, 16, 3, 1, 1),  # Enough tiles for Winograd's algorithm:
  (3, 11, 32, 48, 3, 1, 1),  # the last of a row has one column,
  (4, 9, 32, 32, 3, 1, 0),
  (4, 7, 64, 16, 3, 1, 2),
  (1, 74, 64, 32, 3, 1, 1),  # and the last part fewer tiles.
  (3, 7, 512, 32, 1, 1, 0),  # Copied pixels are spread over the cache,
  (4, 8, 512, 16, 3, 1, 1),  # as are transformed ones.
  (3, 120, 4, 128, 1, 1, 0),  # 22 MB are stored past the cache.
]


def arrays(images, side, channels, features, taps, stride, padding, dtype="float32"):
  out = (side + 2 * padding - taps) // stride + 1
  keys = jax.random.split(jax.random.key(side), 3)
  return (
    jax.random.normal(keys[0], (images, side, side, channels), dtype),
    jax.random.normal(keys[1], (taps, taps, channels, features), dtype),
    jax.random.normal(keys[2], (images, out, out, features), dtype),
  )


def assert_close(ours, expected):
  """To float32's digits, but for one rounding to bfloat16."""
  rounding = 2**-8 if ours.dtype == jnp.bfloat16 else 0
  ours, expected = (np.asarray(array, np.float32) for array in (ours, expected))
  scale = np.abs(expected).max()
  np.testing.assert_allclose(ours, expected, atol=1e-5 * scale, rtol=rounding)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolution_and_gradient_are_those_of_xla(shape, dtype):
  x, kernel, dy = arrays(*shape, dtype)
  stride, padding = shape[5:]

  def xla(x, kernel):
    return conv._lax_conv(x, kernel, stride, padding, groups=1)

  wide_x, wide_kernel, wide_dy = (a.astype(jnp.float32) for a in (x, kernel, dy))
  expected, gradients = jax.vjp(xla, wide_x, wide_kernel)
  ours = jax.jit(partial(native.conv2d, stride=stride, padding=padding))(x, kernel)
  assert ours.dtype == dtype
  assert_close(ours, expected)
  ours = jax.jit(native.kernel_gradient, static_argnums=(2, 3, 4))
  ours = ours(x, dy, kernel.shape, stride, padding)
  assert ours.dtype == dtype
  assert_close(ours, gradients(wide_dy)[1])


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 7, 16, 48, 3, 2, 1), (4, 9, 32, 32, 3, 1, 1)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_what_follows_a_convolution(shape, relu, added):
  x, kernel, other = arrays(*shape)
  stride, padding = shape[5:]
  scale, shift = jnp.linspace(-1, 2, shape[3]), jnp.linspace(3, -2, shape[3])
  expected = conv._lax_conv(x, kernel, stride, padding, groups=1)
  expected = expected * scale[None, None, None] + shift[None, None, None]
  then = (scale, shift, other) if added else (scale, shift)
  expected = sum(then[2:], expected)
  expected = jax.nn.relu(expected) if relu else expected
  settings = {"stride": stride, "padding": padding, "relu": relu}
  assert_close(native.conv2d(x, kernel, *then, **settings), expected)
  # What is wrong is seen, and not turned into 0.
  ours = native.conv2d(x.at[0, 0, 0, 0].set(jnp.nan), kernel, *then, **settings)
  assert jnp.isnan(ours[0, 0, 0]).all()
  assert not jnp.isnan(ours[1:]).any()


@needs_compiler
@pytest.mark.parametrize("taps", [(3, 3), (1, 3), (5, 2)])
def test_rectangles(taps):
  x = jax.random.normal(jax.random.key(0), (2, 6, 11, 8))
  kernel = jax.random.normal(jax.random.key(1), (*taps, 8, 16))
  expected, gradients = jax.vjp(lambda *a: conv._lax_conv(*a, 2, 0, 1), x, kernel)
  assert_close(native.conv2d(x, kernel, stride=2, padding=0), expected)
  ours = native.kernel_gradient(x, expected, kernel.shape, 2, 0)
  assert_close(ours, gradients(expected)[1])


@needs_compiler
def test_many_tiles_are_done_by_another_algorithm():
  x, kernel, _ = arrays(8, 8, 64, 64, 3, 1, 1)
  convolve = partial(native.conv2d, stride=1, padding=1)
  ours = convolve(x, kernel)
  direct = jnp.concatenate([convolve(image[None], kernel) for image in x])
  assert (ours != direct).any()  # Rounded otherwise.
  assert_close(ours, direct)


@needs_compiler
@pytest.mark.parametrize("then", [["f"], ["f", "c"], ["f", "f", "f"], ["f", "F"]])
def test_what_follows_has_the_right_shapes(then):
  x, kernel, _ = arrays(1, 8, 16, 32, 3, 1, 1)
  shapes = {"f": jnp.ones(32), "c": jnp.ones(16), "F": jnp.ones(32, jnp.bfloat16)}
  with pytest.raises(ValueError, match="expected a float32 scale and bias"):
    native.conv2d(x, kernel, *(shapes[name] for name in then), stride=1, padding=1)


@needs_compiler
def test_long_sums_keep_their_digits():
  x = 1 + jax.random.normal(jax.random.key(0), (16, 64, 64, 4))
  dy = 1 + jax.random.normal(jax.random.key(1), (16, 64, 64, 16))
  ours = native.kernel_gradient(x, dy, (3, 3, 4, 16), 1, 1)
  wide = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  exact = np.einsum("nhwc,nhwf->cf", wide[:, :64, :64], np.asarray(dy, np.float64))
  assert np.abs(ours[0, 0] - exact).max() < 2e-6 * np.abs(exact).max()


@needs_compiler
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0), (1, 4)])
def test_training_takes_them_and_gets_the_same_gradients(stride, padding):
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 32))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 32, 64))

  def gradients():
    def loss(x, kernel):
      return jnp.sum(jnp.sin(conv.conv2d(x, kernel, stride, padding)))

    function = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return function(x, kernel), function.lower(x, kernel).as_text()

  with kernels.use("xla"):
    expected, plain = gradients()
  with kernels.use("native"):
    ours, tuned = gradients()
  jax.tree.map(assert_close, ours, expected)
  assert "resnet_jax_conv" not in plain
  # Padding beyond the kernel is left to XLA; so is the input's gradient at a stride.
  names = native._CONV, native._KERNEL_GRADIENT
  called = [tuned.count(f"@{name}_float32(") for name in names]
  assert called == ([0, 0] if padding == 4 else [1 if stride == 2 else 2, 1])


@needs_compiler
def test_second_derivatives_and_vmap():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 16))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 16, 16))

  def values():
    def loss(x, kernel):
      return jnp.sum(conv.conv2d(x, kernel, 1, 1) ** 3)

    gradient = jax.grad(loss, argnums=1)
    penalty = jax.grad(lambda *a: jnp.sum(gradient(*a) ** 2), argnums=(0, 1))
    forward = jax.jvp(lambda k: gradient(x[0], k), [kernel], [kernel])
    return penalty(x[0], kernel), forward, jax.vmap(gradient, (0, None))(x, kernel)

  with kernels.use("xla"):
    expected = values()
  with kernels.use("native"):
    jax.tree.map(assert_close, values(), expected)


def assert_same_step(function, *arguments, called):
  expected = jax.jit(kernels.traced_with("xla", function))(*arguments)
  tuned = jax.jit(kernels.traced_with("native", function))
  jax.tree.map(assert_close, tuned(*arguments), expected)
  text = tuned.lower(*arguments).as_text()
  assert {name: text.count(f"@{name}_float32(") for name in called} == called


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 3, 5, 16), (1, 2, 3, 32), (7, 40, 40, 80)])
def test_batch_norm_and_its_gradient(shape):
  norm = BatchNorm(use_running_average=False)
  x, dy = (jax.random.normal(jax.random.key(i), shape) for i in range(2))
  variables = norm.init(jax.random.key(0), x)
  variables["params"]["scale"] += jnp.arange(shape[-1]) / 16

  def step(params, x):
    def loss(params, x):
      y, updates = norm.apply(
        variables | {"params": params}, 3 * x + 1, mutable="batch_stats"
      )
      # The statistics have gradients too.
      return (jnp.sin(y) * dy).sum() + (updates["batch_stats"]["var"] ** 2).sum(), y

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

  called = {native._MOMENTS: 1, native._BATCH_NORM_SUMS: 1}
  assert_same_step(step, variables["params"], x, called=called)


@needs_compiler
def test_numbers_are_rounded_to_the_nearest_and_nan_stays():
  # Halfway to the next, and about; the largest; infinities; -0 and the smallest; NaNs,
  # of which one has all its bits in the half that bfloat16 lacks.
  bits = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0x7F800000]
  bits += [0xFF800000, 0x80000000, 1, 0x7FC00000, 0x7F800001, 0xFFFFFFFF]
  values = jnp.asarray(np.array(bits, np.uint32).view(np.float32))
  # One tap of weight one: each feature is the shift, in float32, before it is stored.
  zero, one = (
    jnp.zeros((1, 1, 1, 1), jnp.bfloat16),
    jnp.ones((1, 1, 1, 16), jnp.bfloat16),
  )
  shift = jnp.zeros(16).at[: len(bits)].set(values)
  ours = native.conv2d(zero, one, jnp.ones(16), shift, stride=1, padding=0)
  expected = shift.astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_array_equal(ours[0, 0, 0].astype(jnp.float32), expected)


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 3, 5, 16), (7, 40, 40, 80)])
def test_batch_norm_in_bfloat16(shape):
  """Is that in float32, rounded once."""
  x, dy = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(2))

  def step(x, dy):
    norm = BatchNorm(use_running_average=False, dtype=x.dtype)
    variables = norm.init(jax.random.key(0), x)
    y, gradient, updates = jax.vjp(
      lambda x: norm.apply(variables, x, mutable="batch_stats"), x, has_aux=True
    )
    return y, *gradient(dy), updates

  expected = step(x.astype(jnp.float32), dy.astype(jnp.float32))
  tuned = jax.jit(kernels.traced_with("native", step))
  ours = tuned(x, dy)
  assert ours[0].dtype == ours[1].dtype == jnp.bfloat16
  jax.tree.map(assert_close, ours, expected)
  text = tuned.lower(x, dy).as_text()
  for name in (native._MOMENTS, native._BATCH_NORM_SUMS):
    assert f"@{name}_bfloat16(" in text


@needs_compiler
def test_moments_far_from_zero():
  x = 1e4 + jax.random.normal(jax.random.key(0), (4, 32, 32, 16))
  mean, var = native.moments(x)
  exact = np.asarray(x, np.float64)
  np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-7)
  np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-5)


@needs_compiler
def test_further_derivatives_of_batch_norm():
  norm = BatchNorm(use_running_average=False)
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 16))
  variables = norm.init(jax.random.key(0), x)

  def penalty(x):
    def loss(x):
      return jnp.sum(norm.apply(variables, x, mutable="batch_stats")[0] ** 3)

    return jnp.sum(jax.grad(loss)(x) ** 2)

  def derivatives(x):
    second = jax.grad(penalty)
    return second(x), jax.jvp(second, [x], [jnp.cos(x)])[1]

  called = {native._MOMENTS: 2, native._BATCH_NORM_SUMS: 2}
  assert_same_step(derivatives, x, called=called)


def test_channels_that_do_not_match_are_an_error(monkeypatch):
  # A user's calls are not checked as those of the tests are.
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  x, kernel = jnp.ones((1, 4, 4, 64)), jnp.ones((3, 3, 8, 16))
  with kernels.use("native"), pytest.raises(ValueError, match="feature dimension"):
    conv.conv2d(x, kernel, 1, 1)


def test_only_what_they_serve(monkeypatch):
  monkeypatch.setattr(native, "_load", lambda: (16, ""))
  x, kernel = jnp.zeros((1, 4, 4, 8)), jnp.zeros((3, 3, 8, 32))

  def fits(x=x, kernel=kernel, stride=1, padding=1):
    return native.fits(x, kernel, kernel.shape, stride, padding)

  assert fits()
  for name in ("plain", "xla", "native"):
    with kernels.use(name):
      taken = conv._is_native(x, kernel, kernel.shape, stride=1, padding=1)
    assert taken == (name == "native")
  assert not fits(kernel=kernel[..., :24])
  assert not fits(padding=3)
  assert not fits(x[:, :2], padding=0)
  assert fits(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
  assert not fits(x, kernel.astype(jnp.bfloat16))
  assert not fits(x.astype(jnp.float16), kernel.astype(jnp.float16))
  assert not fits(x[:0])


# Said before each compilation.
COMPILING = "compiling the kernels for this CPU, once; about half a minute\n"


def test_they_are_for_one_device(monkeypatch):
  monkeypatch.setattr(native, "_load", lambda: (16, ""))
  assert choice.why_not_native() == "there are 8 devices"
  assert kernels.resolve("auto") == "xla"
  with pytest.raises(UserError, match="not possible here: there are 8 devices"):
    kernels.resolve("native")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  resolved = [kernels.resolve(name) for name in ("auto", "native", "xla")]
  assert resolved == ["native", "native", "xla"]
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert kernels.resolve("auto") == "xla"


def load(**variables) -> subprocess.CompletedProcess:
  code = "from resnet_jax.kernels import native; print(*native._load(), sep='\\n')"
  environment = {"PATH": os.environ["PATH"], **variables}
  return subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True
  )


def test_without_a_compiler_there_are_none():
  result = load(PATH="")
  assert (result.stdout, result.stderr) == (
    "0\nthere is no C++ compiler (c++, or $CXX)\n",
    "",
  )


def test_a_compiler_that_fails_is_named_and_leaves_nothing(tmp_path):
  compiler = tmp_path / "c++"
  compiler.write_text(
    "#!/bin/sh\necho included >&2; echo error: no header >&2; exit 1\n"
  )
  compiler.chmod(0o755)
  result = load(CXX=f"{compiler} -v", XDG_CACHE_HOME=str(tmp_path / "cache"))
  assert result.stdout.startswith(f"0\n{compiler} could not compile ")
  assert result.stdout.endswith(": error: no header\n")
  assert list((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "resnet_jax"]


@needs_compiler
def test_a_cache_that_is_damaged_or_cannot_be_written_is_done_without(tmp_path):
  lanes = f"{native._load()[0]}\n\n"
  compiler = tmp_path / "c++"  # The last level counts, and this one is soon done.
  compiler.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
  compiler.chmod(0o755)
  variables = {"XDG_CACHE_HOME": str(tmp_path), "CXX": str(compiler)}
  result = load(**variables)
  assert (result.stdout, result.stderr) == (lanes, COMPILING)
  (library,) = tmp_path.rglob("*.so")
  library.write_bytes(b"no library")
  result = load(**variables)
  assert (result.stdout, result.stderr) == (lanes, COMPILING)
