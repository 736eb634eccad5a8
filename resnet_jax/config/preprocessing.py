"""The preprocessing of images that weights expect."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from resnet_jax.config.allowed import MAX_SIZE
from resnet_jax.config.schema import DataConfig
from resnet_jax.runtime.errors import UserError

# A field of `DataConfig` with this value is filled in: it gets its value from the
# preprocessing of the weights in `init_from`.
OF_WEIGHTS: dict[str, object] = {
  "mean": (),
  "std": (),
  "eval_resize": -1,
  "eval_crop": -1,
  "interpolation": "",
  "channel_order": "",
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """The preprocessing of images that weights expect.

  Attributes:
    mean: subtracted from pixels scaled to [0, 1]; one value, or one per channel.
    std: the result is divided by it; one value, or one per channel.
    resize: length in pixels to which the short side is resized; 0 does not resize.
    crop: side length in pixels of the square cut out of the middle; 0 does not crop.
    interpolation: "bilinear" or "bicubic", antialiased.
    channel_order: "rgb", or "bgr" for a network that takes blue first. `mean` and `std`
      are in this order too.
    max_value: see `DataConfig.max_value`.
  """

  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  resize: int = 256
  crop: int = 224
  interpolation: str = "bilinear"
  channel_order: str = "rgb"
  max_value: int = 0

  def __post_init__(self) -> None:
    channels = {len(self.mean), len(self.std)} - {1}
    if len(channels) > 1 or 0 in channels:
      raise UserError(
        f"mean={self.mean} and std={self.std} must have one value or one for each "
        "channel"
      )
    if not all(_is_share(n) for n in (*self.mean, *self.std)) or 0 in self.std:
      raise UserError(
        f"mean={self.mean} must be in [0, 1] and std={self.std} in (0, 1] for each "
        "channel, as pixels are scaled to [0, 1]"
      )
    for name, size in (("resize", self.resize), ("crop", self.crop)):
      if type(size) is not int or not 0 <= size <= MAX_SIZE:
        raise UserError(
          f"{name}={size!r} must be a whole number of pixels in [0, {MAX_SIZE}]"
        )
    if self.resize and self.crop > self.resize:
      raise UserError(f"crop={self.crop} must be at most resize={self.resize}")
    if self.interpolation not in ("bilinear", "bicubic"):
      raise UserError(
        f"interpolation={self.interpolation!r} must be 'bilinear' or 'bicubic'"
      )
    if self.channel_order not in ("rgb", "bgr"):
      raise UserError(f"channel_order={self.channel_order!r} must be 'rgb' or 'bgr'")
    if type(self.max_value) is not int or not 0 <= self.max_value < 2**32:
      raise UserError(
        f"max_value={self.max_value!r} must be a whole number in [0, 2**32)"
      )


def _is_share(value: object) -> bool:
  return (
    isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
  )


def check_channels(label: str, values: Sequence[float], channels: int) -> None:
  """Raises `ValueError` unless there is one value, or one per channel."""
  if len(values) not in (1, channels):
    raise UserError(
      f"{label} must have 1 value or one for each of the {channels} channels"
    )


def are_equal(first: Sequence[float], second: Sequence[float]) -> bool:
  """Whether values per channel are equal; a single value stands for all channels."""
  number = max(len(first), len(second))
  return ([*first] * number)[:number] == ([*second] * number)[:number]


def check_fits(preprocessing: Preprocessing, channels: int) -> None:
  """Raises `UserError` unless mean and std fit the images that a network takes."""
  mean, std = preprocessing.mean, preprocessing.std
  if {len(mean), len(std)} - {1, channels}:
    raise UserError(
      f"the network takes images with {channels} channel{'s' * (channels > 1)}, but "
      f"its preprocessing has mean={mean} and std={std}: give each (--mean, --std) one "
      "value, or one for each channel"
    )


def from_dict(values: dict[str, Any]) -> Preprocessing:
  """Returns the preprocessing that a dict describes. A wrong dict may raise any error.

  Args:
    values: result of `dataclasses.asdict`, perhaps read from JSON.
  """
  values = values | {key: tuple(values[key]) for key in ("mean", "std")}
  return Preprocessing(**values)


def preprocessing_of(data: DataConfig) -> Preprocessing:
  """Returns the preprocessing of a run's evaluation."""
  return Preprocessing(
    mean=data.mean,
    std=data.std,
    resize=data.eval_resize,
    crop=data.eval_crop,
    interpolation=data.interpolation,
    channel_order=data.channel_order,
    max_value=data.max_value,
  )


def with_preprocessing(data: DataConfig, preprocessing: Preprocessing) -> DataConfig:
  """Returns `data` with the preprocessing that weights expect in evaluation."""
  return dataclasses.replace(
    data,
    mean=preprocessing.mean,
    std=preprocessing.std,
    eval_resize=preprocessing.resize,
    eval_crop=preprocessing.crop,
    interpolation=preprocessing.interpolation,
    channel_order=preprocessing.channel_order,
    max_value=preprocessing.max_value,
  )


def for_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
  """Returns the preprocessing of RGB images for another number of channels.

  `mean` and `std` of three values follow the first kernel (`models.with_channels`): one
  channel takes the average of the three; any other number repeats them in order.
  """

  def adapt(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 3 or channels == 3:
      return values
    if channels == 1:
      return (sum(values) / 3,)
    return (values * -(-channels // 3))[:channels]

  mean, std = adapt(preprocessing.mean), adapt(preprocessing.std)
  return dataclasses.replace(preprocessing, mean=mean, std=std)


def fields_of_weights(data: DataConfig) -> list[str]:
  """Returns the fields that take their values from the weights in `init_from`."""
  return [name for name, mark in OF_WEIGHTS.items() if getattr(data, name) == mark]


def fill_in(data: DataConfig, preprocessing: Preprocessing) -> DataConfig:
  """Returns `data` with all `fields_of_weights` filled in from `preprocessing`."""
  theirs = with_preprocessing(data, for_channels(preprocessing, data.channels))
  values = {name: getattr(theirs, name) for name in fields_of_weights(data)}
  return dataclasses.replace(data, **values)
