"""Compares the convolutions in C++ with XLA's; tests the case without a compiler."""

import concurrent.futures
import errno
import os
import select
import shutil
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from resnet_jax import kernels
from resnet_jax.kernels import choice, conv, native
from resnet_jax.models.norms import BatchNorm
from resnet_jax.runtime import compilation
from resnet_jax.runtime import native_library as library
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.private_folder import private_folder

needs_compiler = pytest.mark.skipif(
  bool(native.why_not_loaded()), reason="needs a C++ compiler"
)

# Images, side, channels, features, kernel size, stride, padding.
SHAPES = [
  (2, 8, 16, 16, 3, 1, 1),
  (1, 9, 5, 48, 3, 1, 1),  # Odd sizes, one image.
  (3, 7, 64, 32, 3, 2, 1),
  (2, 10, 32, 64, 3, 2, 1),  # The last column is in no window.
  (1, 33, 3, 64, 7, 2, 3),  # The stem.
  (2, 5, 160, 128, 3, 1, 1),  # The gradient is split by channels.
  # The gradient is split by features too, and several images are copied at once.
  (3, 7, 400, 528, 1, 1, 0),
  (2, 6, 8, 16, 3, 1, 0),
  (2, 6, 8, 16, 5, 1, 2),
  (1, 4, 8, 32, 1, 2, 0),
  (2, 1, 8, 16, 3, 1, 1),
  (1, 70, 70, 16, 3, 1, 1),  # Several blocks of rows.
  (4, 8, 32, 16, 3, 1, 1),  # Enough tiles for Winograd's algorithm.
  (3, 11, 32, 48, 3, 1, 1),  # The last tile of a row has one column.
  (4, 9, 32, 32, 3, 1, 0),
  (4, 7, 64, 16, 3, 1, 2),
  # Winograd's algorithm divides the tiles into parts; the last has fewer tiles.
  (1, 74, 64, 32, 3, 1, 1),
  # At 2 KB per pixel, copies of neighbouring pixels would compete for the same few sets
  # of the CPU cache. Each copied pixel is followed by a gap, which prevents this.
  (3, 7, 512, 32, 1, 1, 0),
  (3, 7, 512, 32, 1, 2, 0),
  (4, 8, 512, 16, 3, 1, 1),  # The same for pixels that Winograd's algorithm transforms.
  (1, 7, 64, 128, 3, 1, 1),  # A few tiles, divided by the features.
  # The output has 22 MB, so it is stored directly in memory, bypassing the caches.
  (3, 120, 4, 128, 1, 1, 0),
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
  """Asserts equality to float32 precision, except for one rounding to bfloat16."""
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
  shift = jnp.linspace(3, -2, shape[3])
  expected = conv._lax_conv(x, kernel, stride, padding, groups=1)
  then = (shift, other) if added else (shift,)
  expected = sum(then[1:], expected + shift[None, None, None])
  expected = jax.nn.relu(expected) if relu else expected
  settings = {"stride": stride, "padding": padding, "relu": relu}
  assert_close(native.conv2d(x, kernel, *then, **settings), expected)
  # NaN must stay visible and not become 0.
  ours = native.conv2d(x.at[0, 0, 0, 0].set(jnp.nan), kernel, *then, **settings)
  assert jnp.isnan(ours[0, 0, 0]).all()
  assert not jnp.isnan(ours[1:]).any()


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_kernel_gives_the_same_bits(shape):
  x, kernel, other = arrays(*shape)
  stride, padding = shape[5:]
  then = (jnp.linspace(3, -2, shape[3]), other)
  settings = {"stride": stride, "padding": padding, "relu": True}
  packed = native.pack(x.shape, kernel, stride, padding)
  expected = native.conv2d(x, kernel, *then, **settings)
  ours = native.packed_conv2d(x, packed, *then, **settings)
  np.testing.assert_array_equal(ours, expected)


@needs_compiler
@pytest.mark.parametrize("packed_for, images", [(1, 8), (8, 1)])
def test_a_packed_kernel_convolves_other_sizes_too(packed_for, images):
  x, kernel, _ = arrays(images, 6, 64, 32, 3, 1, 1)
  packed = native.pack((packed_for, 6, 6, 64), kernel, 1, 1)
  assert packed.ndim == (4 if packed_for == 8 else 5)  # 4: Winograd's algorithm
  expected = native.conv2d(x, kernel, stride=1, padding=1)
  assert_close(native.packed_conv2d(x, packed, stride=1, padding=1), expected)


@needs_compiler
@pytest.mark.parametrize("taps", [(3, 3), (1, 3), (5, 2)])
def test_rectangles(taps):
  x = jax.random.normal(jax.random.key(0), (2, 6, 11, 8))
  kernel = jax.random.normal(jax.random.key(1), (*taps, 8, 16))
  expected, gradients = jax.vjp(lambda *a: conv._lax_conv(*a, 2, 0, 1), x, kernel)
  assert_close(native.conv2d(x, kernel, stride=2, padding=0), expected)
  packed = native.pack(x.shape, kernel, 2, 0)
  assert_close(native.packed_conv2d(x, packed, stride=2, padding=0), expected)
  ours = native.kernel_gradient(x, expected, kernel.shape, 2, 0)
  assert_close(ours, gradients(expected)[1])


@needs_compiler
def test_many_tiles_are_done_by_another_algorithm():
  x, kernel, _ = arrays(8, 6, 64, 64, 3, 1, 1)
  convolve = partial(native.conv2d, stride=1, padding=1)
  ours = convolve(x, kernel)
  direct = jnp.concatenate([convolve(image[None], kernel) for image in x])
  assert (ours != direct).any()  # The rounding differs.
  assert_close(ours, direct)


@needs_compiler
@pytest.mark.parametrize("then", [["c"], ["f", "f"], ["f", "f", "f"], ["F"]])
def test_what_follows_has_the_right_shapes(then):
  x, kernel, _ = arrays(1, 8, 16, 32, 3, 1, 1)
  shapes = {"f": jnp.ones(32), "c": jnp.ones(16), "F": jnp.ones(32, jnp.bfloat16)}
  with pytest.raises(ValueError, match="expected a float32 bias"):
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
  # XLA computes everything if the padding is at least as large as the kernel. It also
  # computes the gradient of the input if the stride is not 1.
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
  # Numbers halfway between two bfloat16 numbers, and close to halfway; the largest
  # number, infinities, -0, the smallest number and NaNs. One NaN, 0x7F800001, would
  # become infinity if its lower 16 bits were simply dropped.
  bits = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0x7F800000]
  bits += [0xFF800000, 0x80000000, 1, 0x7FC00000, 0x7F800001, 0xFFFFFFFF]
  values = jnp.asarray(np.array(bits, np.uint32).view(np.float32))
  # The input is 0, so the output before rounding is the float32 shift.
  zero, one = (
    jnp.zeros((1, 1, 1, 1), jnp.bfloat16),
    jnp.ones((1, 1, 1, 16), jnp.bfloat16),
  )
  shift = jnp.zeros(16).at[: len(bits)].set(values)
  ours = native.conv2d(zero, one, shift, stride=1, padding=0)
  expected = shift.astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_array_equal(ours[0, 0, 0].astype(jnp.float32), expected)


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 3, 5, 16), (7, 40, 40, 80)])
def test_batch_norm_in_bfloat16(shape):
  """It equals batch norm in float32, rounded once."""
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
  # Calls by users are not type-checked, unlike calls in the tests.
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  x, kernel = jnp.ones((1, 4, 4, 64)), jnp.ones((3, 3, 8, 16))
  with kernels.use("native"), pytest.raises(ValueError, match="feature dimension"):
    conv.conv2d(x, kernel, 1, 1)


def test_only_what_they_serve(monkeypatch):
  monkeypatch.setattr(native, "_load", lambda dtype: (16, ""))
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


# Printed before each compilation.
COMPILING = "compiling the kernels for this CPU, once; some seconds\n"


def test_they_are_for_one_device(monkeypatch):
  monkeypatch.setattr(native, "_load", lambda dtype: (16, ""))
  assert choice.why_not_native() == "there are 8 devices"
  assert kernels.resolve("auto") == "xla"
  with pytest.raises(UserError, match="not possible here: there are 8 devices"):
    kernels.resolve("native")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  resolved = [kernels.resolve(name) for name in ("auto", "native", "xla")]
  assert resolved == ["native", "native", "xla"]
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert kernels.resolve("auto") == "xla"


def test_without_gradients_xla_is_for_bfloat16_where_the_processor_has_it(monkeypatch):
  monkeypatch.setattr(choice, "resolve", lambda name: "native")
  for flags, in_bfloat16 in (("avx2", "native"), ("amx_bf16", "xla")):
    monkeypatch.setattr(compilation, "processor_flags", lambda flags=flags: flags)
    assert kernels.resolve_for_inference("float32") == "native"
    assert kernels.resolve_for_inference("bfloat16") == in_bfloat16


def load(**variables) -> subprocess.CompletedProcess:
  code = (
    "from resnet_jax.kernels import native; print(*native._load('float32'), sep='\\n')"
  )
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


def script(path: Path, text: str) -> str:
  path.write_text(f"#!/bin/sh\n{text}\n")
  path.chmod(0o755)
  return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("small")
  (folder / "small.cc").write_text('extern "C" int resnet_jax_lanes() { return 7; }')
  command = "c++ -shared -fPIC small.cc -o small.so"
  subprocess.run(command.split(), cwd=folder, check=True)
  return folder / "small.so"


@pytest.fixture
def cache(tmp_path, monkeypatch, small) -> Path:
  """Sets a new cache folder and a compiler that makes a small library immediately."""
  compiler = f'while [ "$1" != -o ]; do shift; done; cp {small} "$2"'
  monkeypatch.setenv("CXX", script(tmp_path / "c++", compiler))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "resnet_jax"


def said_while_loading(capsys) -> str:
  capsys.readouterr()
  assert library.load().resnet_jax_lanes() == 7
  return capsys.readouterr().err


def swap(path: Path, data: bytes) -> None:
  """Replaces the file. Writing into it would change the library that is loaded."""
  path.unlink()
  path.write_bytes(data)
  path.chmod(0o700)


def truncate(size: int):
  return lambda kept: swap(kept, kept.read_bytes()[:size])


def flip_a_byte(kept: Path) -> None:
  data = bytearray(kept.read_bytes())
  data[len(data) // 2] ^= 1
  swap(kept, data)


def link_elsewhere(kept: Path) -> None:
  kept.rename(kept.parents[2] / "elsewhere")
  kept.symlink_to(kept.parents[2] / "elsewhere")


DAMAGE = {
  "0 bytes": truncate(0),
  "1 byte": truncate(1),
  "1000 bytes": truncate(1000),
  "all bytes but one": truncate(-1),
  "one bit": flip_a_byte,
  "no library": lambda kept: swap(kept, b"no library"),
  "gone": Path.unlink,
  "no digest": lambda kept: kept.with_suffix(".digest").unlink(),
  "empty digest": lambda kept: kept.with_suffix(".digest").write_bytes(b""),
  "digest of another": lambda kept: kept.with_suffix(".digest").write_text("ab" * 64),
  "others can write": lambda kept: kept.chmod(0o777),
  "link": link_elsewhere,
}


@needs_compiler
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_library_is_compiled_anew_once(cache, capsys, damage):
  assert said_while_loading(capsys) == COMPILING
  assert said_while_loading(capsys) == ""
  (kept,) = cache.glob("*.so")
  whole = kept.read_bytes()
  damage(kept)
  assert said_while_loading(capsys) == COMPILING
  assert said_while_loading(capsys) == ""
  assert kept.read_bytes() == whole
  assert stat.S_IMODE(kept.lstat().st_mode) == 0o700
  assert sorted(cache.iterdir()) == [kept.with_suffix(".digest"), kept]


@needs_compiler
def test_a_cache_is_private_whatever_the_umask(cache, capsys):
  umask = os.umask(0)
  try:
    assert said_while_loading(capsys) == COMPILING
    assert said_while_loading(capsys) == ""
  finally:
    os.umask(umask)
  (kept,) = cache.glob("*.so")
  assert [stat.S_IMODE(p.stat().st_mode) for p in (cache, kept)] == [0o700, 0o700]


def make_a_link(folder: Path, monkeypatch) -> None:
  folder.rename(folder.with_name("other"))
  folder.symlink_to(folder.with_name("other"))


def make_a_file(folder: Path, monkeypatch) -> None:
  shutil.rmtree(folder)
  folder.touch()


def belong_to_another(folder: Path, monkeypatch) -> None:
  monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)


def be_full(folder: Path, monkeypatch) -> None:
  def fsync(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  next(folder.glob("*.so")).unlink()
  monkeypatch.setattr(os, "fsync", fsync)


SHARED = "other users can write in {0} (mode 77{1}): delete it, or, if you trust what"
USELESS = {
  "group": (lambda folder, _: folder.chmod(0o770), SHARED.format("{0}", 0)),
  "others": (lambda folder, _: folder.chmod(0o772), SHARED.format("{0}", 2)),
  "all": (lambda folder, _: folder.chmod(0o777), "is there, chmod go-w {0}\n"),
  "owner": (belong_to_another, "{0} belongs to another user (uid "),
  "link": (make_a_link, "{0} is a link; make it a folder\n"),
  "file": (make_a_file, "File exists: '{0}'\n"),
  "full": (be_full, "No space left on device\n"),
}


@needs_compiler
@pytest.mark.parametrize(("spoil", "reason"), USELESS.values(), ids=USELESS)
def test_a_cache_that_cannot_be_trusted_or_used_is_not(
  cache, capsys, monkeypatch, spoil, reason
):
  said_while_loading(capsys)
  spoil(cache, monkeypatch)
  before = sorted(path.name for path in cache.parent.rglob("*"))
  for _ in range(2):
    said = said_while_loading(capsys).removeprefix(COMPILING).removesuffix(COMPILING)
    assert said.startswith("the kernels are compiled for this process only (XDG_CACHE")
    assert reason.format(cache) in said
    assert len(said.splitlines()) == 1
  left = sorted(path.name for path in cache.parent.rglob("*"))
  assert left == before


@needs_compiler
def test_a_link_to_a_cache_folder_above_is_followed(cache, capsys):
  (cache.parents[1] / "scratch").mkdir()
  cache.parent.symlink_to(cache.parents[1] / "scratch")
  assert said_while_loading(capsys) == COMPILING
  assert said_while_loading(capsys) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_private_folder_stays_itself_when_others_take_its_place(tmp_path):
  folder = private_folder(tmp_path / "shared" / "own")
  (tmp_path / "shared").rename(tmp_path / "moved")
  (tmp_path / "shared" / "own").mkdir(parents=True)
  (folder / "file").touch()
  assert [path.name for path in tmp_path.rglob("file")] == ["file"]
  assert (tmp_path / "moved" / "own" / "file").exists()


@needs_compiler
def test_old_libraries_and_what_was_left_behind_are_removed(cache, capsys, monkeypatch):
  said_while_loading(capsys)
  (kept,) = cache.glob("*.so")
  os.utime(kept, (0, 0))
  said_while_loading(capsys)  # Loading counts as use.
  day = 24 * 3600
  ages = {"kernels-old.so": 31 * day, "kernels-used.so": 29 * day}
  ages |= {"tmpkilled": 1.1 * day, "tmprunning": 0.9 * day, "other": 99 * day}
  for name, age in ages.items():
    if name.startswith("tmp"):
      (cache / name).mkdir()
      (cache / name / "kernels.so").touch()
    else:
      (cache / name).touch()
    os.utime(cache / name, (time.time() - age,) * 2)
  (cache / "kernels-old.digest").touch()
  monkeypatch.setenv("CXX", os.environ["CXX"] + " -another")
  assert said_while_loading(capsys) == COMPILING
  assert kept.exists()
  left = {path.name for path in cache.iterdir() if path.stem != kept.stem}
  assert len(list(cache.glob("kernels-*.digest"))) == 2
  assert left & {*ages, "kernels-old.digest"} == {
    *("kernels-used.so", "tmprunning", "other")
  }


@needs_compiler
def test_processes_that_compile_at_once_are_both_right(cache, capsys):
  with concurrent.futures.ThreadPoolExecutor() as pool:
    loaded = list(pool.map(lambda _: library.load(), range(8)))
  assert [functions.resnet_jax_lanes() for functions in loaded] == [7] * 8
  assert said_while_loading(capsys) == ""
  assert len(list(cache.iterdir())) == 2


def load_anew(monkeypatch) -> None:
  """Makes this process load the kernels again at each use."""
  monkeypatch.setattr(native, "_load", native._load.__wrapped__)
  monkeypatch.setattr(library, "start", library.start.__wrapped__)


def test_the_end_of_a_process_stops_its_compiler_which_leaves_nothing(tmp_path):
  started = tmp_path / "started"
  compiler = script(tmp_path / "c++", f"touch {started}; sleep 100")
  code = f"""
import pathlib, time
from resnet_jax.runtime import native_library
native_library.start("float32")
while not pathlib.Path({str(started)!r}).exists():
  time.sleep(0.05)
"""
  variables = {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path / "cache")}
  command = [sys.executable, "-c", code]
  done = subprocess.run(
    command, env=os.environ | variables, capture_output=True, text=True, timeout=60
  )
  assert (done.returncode, done.stderr) == (0, COMPILING)
  assert list((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "resnet_jax"]


def test_each_dtype_has_a_library(cache):
  for dtype in ("float32", "bfloat16"):
    library.load(dtype)
  assert len(list(cache.glob("*.so"))) == 2


def test_a_compiler_that_cannot_be_run_is_named(tmp_path, monkeypatch):
  load_anew(monkeypatch)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  plain = tmp_path / "plain"
  plain.touch()
  unreadable = tmp_path / "nonsense"
  unreadable.write_bytes(b"\x7fELF\0")
  unreadable.chmod(0o755)
  for value, reason in {
    'g++ "': "CXX='g++ \"' is no command: No closing quotation",
    "": "CXX is empty: unset it, or name a C++ compiler",
    " ": "CXX is empty: unset it, or name a C++ compiler",
    "''": "CXX=\"''\" names no program that can be run: ''",
    "no-such-c++ -v": "CXX='no-such-c++ -v' names no program that can be run: 'no-such",
    str(tmp_path): f"CXX='{tmp_path}' names no program that can be run: ",
    str(plain): f"CXX='{plain}' names no program that can be run: ",
    str(unreadable): f"{unreadable} could not be run: Exec format error",
  }.items():
    monkeypatch.setenv("CXX", value)
    assert native.why_not_loaded().startswith(reason)
    assert native.is_broken()
  assert list(tmp_path.glob("cache/resnet_jax/*")) == []


FAILING = {
  "echo included >&2; echo error: no header >&2; exit 1": ": error: no header",
  "exit 3": ": it ended with status 3 and made no library",
  "exit 0": ": it ended with status 0 and made no library",
  "kill -9 $$": ": it ended with status -9 and made no library",
}


@pytest.mark.parametrize("text", FAILING)
def test_a_compiler_that_fails_is_named_and_leaves_nothing(tmp_path, monkeypatch, text):
  compiler = script(tmp_path / "c++", text)
  monkeypatch.setenv("CXX", f"{compiler} -v")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  with pytest.raises(library.CompileError) as caught:
    library.load()
  assert str(caught.value).startswith(f"{compiler} could not compile ")
  assert str(caught.value).endswith(FAILING[text])
  assert list((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "resnet_jax"]


@pytest.mark.parametrize("text", ["echo nonsense", "exec c++ -shared -x c++ /dev/null"])
def test_what_is_no_library_of_kernels_is_a_reason(tmp_path, monkeypatch, text):
  text = f'while [ "$1" != -o ]; do shift; done; {text} > "$2" -o "$2"'
  monkeypatch.setenv("CXX", script(tmp_path / "c++", text))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  load_anew(monkeypatch)
  lanes, reason = native._load("float32")
  assert lanes == 0
  assert len(reason.splitlines()) == 1


def test_a_compiler_that_hangs_ends_with_all_its_processes(tmp_path, monkeypatch):
  alive = tmp_path / "alive"
  os.mkfifo(alive)
  compiler = script(tmp_path / "c++", f"exec 3>{alive}; sleep 600 & sleep 600")
  monkeypatch.setenv("CXX", compiler)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(library, "_COMPILE_LIMIT_S", 1)
  reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
  with pytest.raises(library.CompileError, match="took more than 1 s to compile"):
    library.load()
  assert select.select([reader], [], [], 30)[0]  # No process has it open for writing.
  assert os.read(reader, 1) == b""
  os.close(reader)
  assert list(tmp_path.glob("cache/resnet_jax/*")) == []


@needs_compiler
def test_a_helper_that_the_compiler_leaves_behind_is_not_waited_for(
  cache, tmp_path, monkeypatch
):
  helped = script(tmp_path / "helped", f'sleep 20 & exec {os.environ["CXX"]} "$@"')
  monkeypatch.setenv("CXX", helped)
  start = time.monotonic()
  assert library.load().resnet_jax_lanes() == 7
  assert time.monotonic() - start < 15
