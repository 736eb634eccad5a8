"""From the values that a file stores to the channels and the range of a batch.

Letters: H height, W width, C channels.
"""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet_jax.data.images.errors import ImageError, UnfitError, warn_of_few_bits
from resnet_jax.runtime.errors import setting_name

MAX_CHANNELS = 64
_LARGEST = 65535  # Of uint16.
# The weights of red, green and blue in Pillow's mode "L" (ITU-R BT.601), times 2^16.
_LUMA = (19595, 38470, 7471)


class PixelFormat(NamedTuple):
  """The pixels that images are decoded to.

  Attributes:
    channels: see `DataConfig.channels`.
    max_value: see `DataConfig.max_value`. The pixels are uint8 if it is 0; else they
      are uint16, and 65535 stands for `max_value`.
  """

  channels: int = 3
  max_value: int = 0

  @property
  def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """The dtype of the pixels."""
    return np.dtype(np.uint16) if self.max_value else np.dtype(np.uint8)


RGB8 = PixelFormat()


class Head(NamedTuple):
  """The header of an image file.

  Attributes:
    format: the name of the format, a key of `KNOWN`, or MPO, which is a kind of JPEG.
    mode: Pillow's name of the mode; for arrays, the dtype and the number of channels.
    size: (width, height) in pixels, as stored.
    orientation: EXIF orientation, 1 to 8: 1 is upright, 5 and above swap the sides.
    plain: whether it is a JPEG that the fast decoders decode correctly.
    pixel_bytes: bytes of a pixel in memory, 4 or fewer unless it is stated.
  """

  format: str
  mode: str
  size: tuple[int, int]
  orientation: int
  plain: bool = False
  pixel_bytes: int = 4


class Stored(NamedTuple):
  """The content of an image file.

  Attributes:
    values: [H, W, C], as stored: unsigned, signed or floating-point numbers.
    top: the value that counts as 1, the highest of the file's type; 0 if the type does
      not tell it.
    has_alpha: whether the last channel is transparency.
  """

  values: np.ndarray
  top: int = 255
  has_alpha: bool = False

  @property
  def colors(self) -> np.ndarray:
    """The values without transparency."""
    return self.values[..., :-1] if self.has_alpha else self.values


def mode_of(values_dtype: np.dtype, channels: int) -> str:
  """Returns the mode of an array for `Head`, such as "uint16 x4"."""
  return f"{values_dtype.name} x{channels}"


def check_shape(size: tuple[int, int], channels: int) -> None:
  """Raises `ImageError` if an image is empty or has too many channels."""
  if min(*size, channels) < 1:
    raise ImageError(f"its shape {size[1]}x{size[0]}x{channels} is empty")
  if channels > MAX_CHANNELS:
    raise ImageError(
      f"it has {channels} channels, more than {MAX_CHANNELS}; an array must be [height,"
      " width] or [height, width, channels]"
    )


def to_pixels(stored: Stored, pixels: PixelFormat) -> np.ndarray:
  """Converts what a file stores.

  One or three channels become the other number: grey is repeated, and colour becomes
  luma as in Pillow's mode "L". For these two numbers transparency is dropped. For any
  other number, the file must have exactly so many channels.

  Returns:
    [H, W, channels] of `pixels.dtype`.

  Raises:
    UnfitError: the number of channels does not fit, a value is not in [0, max_value],
      or the image would be black though its values are not 0.
  """
  values, wanted = stored.values, pixels.channels
  if values.shape[2] != wanted:
    values = stored.colors
    if wanted not in (1, 3) or values.shape[2] not in (1, 3):
      found, name = stored.values.shape[2], setting_name("data.channels")
      raise UnfitError(
        f"it has {found} channel{'s' * (found > 1)}, and {name} is {wanted}: give all "
        f"images {wanted}, or set {name}={found}"
      )
  if values.dtype != np.uint8 or pixels.max_value:
    values = _scale(values, stored.top, pixels.max_value)
  if values.shape[2] == 1 and wanted == 3:
    return values.repeat(3, axis=2)
  if values.shape[2] == 3 and wanted == 1:
    return _luma(values)
  return values


def _scale(values: np.ndarray, top: int, max_value: int) -> np.ndarray:
  """Scales values to uint8, or to uint16 if `max_value` is set, rounded."""
  kind, whole = values.dtype, _LARGEST if max_value else 255
  name = setting_name("data.max_value")
  if max_value and top not in (1, 255):  # Not for bool and uint8.
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= max_value:  # NaN is not either.
      raise UnfitError(
        f"its values go from {low} to {high}, and must be in [0, {max_value}], as "
        f"{name} is {max_value}"
      )
    top = max_value
  if not top:
    raise UnfitError(
      f"it stores {kind.name} values; set {name} to the value that counts as 1"
    )
  if kind.itemsize > 2 or kind.kind not in "bu":
    scaled: np.ndarray = np.rint(values.astype(np.float64) * whole / top)
    return scaled.astype(np.uint16 if max_value else np.uint8)
  result: np.ndarray = _table(top, whole)[values.astype(np.uint16)]
  if not max_value:
    _check_dark(values, result, top)
  return result


@functools.lru_cache(16)
def _table(top: int, whole: int) -> np.ndarray:
  """Returns round(value * whole / top) for each value of uint16."""
  table = np.rint(np.arange(_LARGEST + 1) * whole / top).clip(0, whole)
  return table.astype(np.uint8 if whole == 255 else np.uint16)


def _check_dark(values: np.ndarray, pixels: np.ndarray, top: int) -> None:
  """Warns if few bits are in use; raises `UnfitError` if only black is left."""
  highest = int(values.max())
  if not highest or highest > top // 4:  # More than 14 of 16 bits.
    return
  bits = highest.bit_length()
  if not pixels.any():
    raise UnfitError(
      f"it would be black: the highest of its values is {highest}, and {top} counts as "
      f"white; set {setting_name('data.max_value')}={2**bits - 1}"
    )
  if top == _LARGEST:
    warn_of_few_bits(bits)


def _luma(values: np.ndarray) -> np.ndarray:
  """Maps [H, W, 3] uint8 or uint16 to [H, W, 1], rounded as by Pillow."""
  if values.dtype == np.uint8:
    image = Image.fromarray(np.ascontiguousarray(values))
    return np.asarray(image.convert("L"))[..., None]
  # The sum is less than 2^32.
  weighted = values.astype(np.uint32) * np.array(_LUMA, np.uint32)
  total = weighted.sum(axis=2, keepdims=True, dtype=np.uint32) + np.uint32(1 << 15)
  luma: np.ndarray = (total >> np.uint32(16)).astype(np.uint16)
  return luma
