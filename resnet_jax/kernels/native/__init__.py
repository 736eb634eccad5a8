"""Layers in C++ for CPUs, on which XLA's convolutions and gradients are slow.

`why_not_loaded` compiles `kernels.cc` once, with the C++ compiler of this machine and
for its processor. It keeps the library in the user's cache directory. Without a
compiler, XLA's layers are used, and nothing else changes. `benchmarks/NOTES.md` has the
speed-up.

Letters: B batch, H height, W width, C input channels, F output channels (features).
"""

import functools
import os
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from resnet_jax.runtime import native_library
from resnet_jax.runtime.arrays import Array, Float, Float32

_CONV, _KERNEL_GRADIENT = "resnet_jax_conv", "resnet_jax_conv_kernel_gradient"
_PACKED_CONV = "resnet_jax_packed_conv"
_MOMENTS, _BATCH_NORM_SUMS = "resnet_jax_moments", "resnet_jax_batch_norm_sums"
_DTYPES = "float32", "bfloat16"

ArrayFunction = Callable[..., jax.Array]  # A function of arrays only.

# A JAX type without declared types.
_shaped: Callable[[tuple[int, ...], DTypeLike], jax.ShapeDtypeStruct]
_shaped = jax.ShapeDtypeStruct
_capsule: Callable[[object], object] = jax.ffi.pycapsule


def conv2d(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "_ _ c f"],
  *then: jax.Array,
  stride: int,
  padding: int,
  relu: bool = False,
) -> Float[Array, "b _ _ f"]:
  """Convolves; only for arguments that `fits` accepts.

  Args:
    x: the images.
    kernel: [height, width, C, F].
    *then: a bias of the result, [F], then a residual in the shape of the result, both
      float32. Give both, only the bias or none.
    stride: step along H and W.
    padding: number of zeros on each side.
    relu: whether to apply ReLU at the end.

  Returns:
    [B, H', W', F], same dtype as `x`.

  Raises:
    ValueError: `then` has other shapes, or is not float32.
  """
  shape = _out_shape(x.shape, kernel.shape, stride, padding)
  _check_then(then, shape)
  settings = {"stride": stride, "padding": padding, "relu": relu}
  return _call(_CONV, shape, x, kernel, *then, dtype=x.dtype, **settings)


def _check_then(then: tuple[jax.Array, ...], shape: tuple[int, ...]) -> None:
  expected = [shape[-1:], shape][: len(then)]
  is_float = all(array.dtype == jnp.float32 for array in then)
  if [array.shape for array in then] != expected or not is_float:
    found = ", ".join(str(jax.typeof(array)) for array in then)
    raise ValueError(
      f"expected a float32 bias of shape {shape[-1:]} and a residual of shape {shape}, "
      f"got {found}"
    )


def pack(
  x_shape: tuple[int, ...],
  kernel: Float32[Array, "kh kw c f"],
  stride: int,
  padding: int,
) -> Float32[Array, "..."]:
  """Writes a kernel in the order in which `packed_conv2d` reads it.

  `conv2d` does this in each call. For one image, that can take longer than to convolve.

  Args:
    x_shape: [B, H, W, C]. It decides whether Winograd's algorithm is faster. The packed
      kernel convolves images of other sizes too.
    kernel: a kernel for which `conv2d` `fits`.
    stride: step along H and W.
    padding: number of zeros on each side.

  Returns:
    [panels, kh, kw, C, features of a panel], or for Winograd's algorithm
    [16, panels, C, features of a panel].
  """
  *taps, channels, features = kernel.shape
  lanes = _load("float32")[0]
  panel = 2 * lanes if features % (2 * lanes) == 0 else lanes
  images, height, width, _ = _out_shape(x_shape, kernel.shape, stride, padding)
  tiles = images * -(-height // 2) * -(-width // 2)
  # As `IsForWinograd` in `winograd.h`.
  is_wide = channels % lanes == 0 and channels >= 32
  if taps == [3, 3] and stride == 1 and is_wide and tiles >= 16:
    kernel = _transform_taps(_transform_taps(kernel, axis=0), axis=1)
    return kernel.reshape(16, channels, -1, panel).swapaxes(1, 2)
  return jnp.moveaxis(kernel.reshape(*taps, channels, -1, panel), -2, 0)


def _transform_taps(kernel: jax.Array, axis: int) -> jax.Array:
  """Maps three taps to four: Lavin & Gray 2015, section 4.1; as in `winograd.h`."""
  a, b, c = jnp.moveaxis(kernel, axis, 0)
  return jnp.stack([a, 0.5 * (a + b + c), 0.5 * (a - b + c), c], axis)


def packed_conv2d(
  x: Float32[Array, "b h w c"],
  kernel: Float32[Array, "..."],
  *then: jax.Array,
  stride: int,
  padding: int,
  relu: bool = False,
) -> Float32[Array, "b _ _ f"]:
  """Computes the same as `conv2d`, with a kernel of `pack`; see there."""
  *_, channels, panel = kernel.shape
  is_for_winograd = kernel.ndim == 4
  taps = (3, 3) if is_for_winograd else kernel.shape[1:3]
  panels = kernel.shape[1 if is_for_winograd else 0]
  kernel_shape = (*taps, channels, panels * panel)
  shape = _out_shape(x.shape, kernel_shape, stride, padding)
  _check_then(then, shape)
  settings = {"stride": stride, "padding": padding, "relu": relu}
  return _call(_PACKED_CONV, shape, x, kernel, *then, dtype=x.dtype, **settings)


def kernel_gradient(
  x: Float[Array, "b h w c"],
  dy: Float[Array, "b _ _ f"],
  shape: tuple[int, ...],
  stride: int,
  padding: int,
) -> Float[Array, "_ _ c f"]:
  """Returns the gradient of `conv2d`'s kernel; `dy` is the gradient of its result."""
  gradient = _call(_KERNEL_GRADIENT, shape, x, dy, stride=stride, padding=padding)
  return gradient.astype(x.dtype)


def moments(x: Float[Array, "... c"]) -> Float32[Array, "2 c"]:
  """Returns mean and variance per channel; only for arrays that `fits_norm` accepts."""
  return _call(_MOMENTS, (2, x.shape[-1]), x)


def batch_norm_sums(
  x: Float[Array, "*b c"], mean: Float32[Array, " c"], dy: Float[Array, "*b c"]
) -> Float32[Array, "2 c"]:
  """Returns the sums of `dy` and `dy * (x - mean)` per channel."""
  return _call(_BATCH_NORM_SUMS, (2, x.shape[-1]), x, mean, dy)


def _call(
  name: str,
  shape: tuple[int, ...],
  *arrays: jax.Array,
  dtype: DTypeLike = jnp.float32,
  **attributes: int,
) -> jax.Array:
  result, of = _shaped(shape, dtype), str(arrays[0].dtype)
  _load(of)
  name = f"{name}_{of}"
  return jax.ffi.ffi_call(name, result, vmap_method="sequential")(*arrays, **attributes)


def _out_shape(
  x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, padding: int
) -> tuple[int, ...]:
  sizes = zip(x_shape[1:3], kernel_shape[:2], strict=True)
  size = ((size + 2 * padding - taps) // stride + 1 for size, taps in sizes)
  return x_shape[0], *size, kernel_shape[-1]


def with_derivatives(call: ArrayFunction, reference: ArrayFunction) -> ArrayFunction:
  """Returns `call` with the derivatives of `reference`, which computes the same."""
  function = jax.custom_jvp(call)

  @function.defjvp
  def derive(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
  ) -> tuple[jax.Array, jax.Array]:
    return function(*primals), jax.jvp(reference, primals, tangents)[1]

  return function


def fits(
  x: jax.Array, other: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> bool:
  """Whether `conv2d` and `kernel_gradient` are available for a convolution.

  Args:
    x: images of the convolution.
    other: its kernel, or the gradient of its result.
    shape: shape of its kernel.
    stride: step along H and W.
    padding: number of zeros on each side.
  """
  return (
    _serves(x, shape[-1])  # First: symbolic shapes (export) cannot be compared.
    and x.shape[-1] == shape[-2]
    and padding < min(shape[:2])
    and min(_out_shape(x.shape, shape, stride, padding)) > 0
    and other.dtype == x.dtype
  )


def fits_norm(x: jax.Array) -> bool:
  """Whether `moments` and `batch_norm_sums` are available for an array."""
  return _serves(x, x.shape[-1])


def _serves(x: jax.Array, features: int) -> bool:
  """Whether the kernels support the dtype and the number of features."""
  return (
    str(x.dtype) in _DTYPES
    and x.size > 0
    and not jax.sharding.get_abstract_mesh().manual_axes  # Not in shard_map.
    and (lanes := _load(str(x.dtype))[0]) > 0
    and features % lanes == 0
  )


def why_not_loaded(dtype: str = "float32") -> str:
  """Compiles the kernels if necessary; returns why that failed, or "".

  Args:
    dtype: dtype of the computation. Those of float32 are needed in any case.
  """
  return _load("float32")[1] or _load(dtype)[1]


def is_broken(dtype: str = "float32") -> bool:
  """Whether a compiler exists and failed; see `why_not_loaded`."""
  is_named = "CXX" in os.environ or shutil.which("c++") is not None
  return is_named and bool(why_not_loaded(dtype))


@functools.cache
def _load(dtype: str) -> tuple[int, str]:
  """Compiles the kernels of a dtype if necessary, and registers them.

  Returns:
    The number of floats in a vector, or 0 without kernels; and why there are none.
  """
  try:
    functions = native_library.start(dtype).result()
  except (native_library.CompileError, OSError) as error:
    return 0, str(error)
  names = [_CONV, _KERNEL_GRADIENT, _MOMENTS, _BATCH_NORM_SUMS]
  names += [_PACKED_CONV] * (dtype == "float32")
  for name in (f"{name}_{dtype}" for name in names):
    target = _capsule(getattr(functions, name))
    jax.ffi.register_ffi_target(name, target, platform="cpu")
  return functions.resnet_jax_lanes(), ""
