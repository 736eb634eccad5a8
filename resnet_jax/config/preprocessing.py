"""What weights expect images to have gone through."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from resnet_jax.config.schema import DataConfig
from resnet_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What weights expect images to have gone through.

  Attributes:
    mean: of each channel, of pixels scaled to [0, 1]; subtracted.
    std: likewise; divided by.
    resize: the short side, in pixels; 0 leaves the size.
    crop: side of the square cut from the middle, in pixels; 0 cuts nothing.
    interpolation: "bilinear" or "bicubic", antialiased.
  """

  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  resize: int = 256
  crop: int = 224
  interpolation: str = "bilinear"

  def __post_init__(self) -> None:
    numbers = (*self.mean, *self.std, self.resize, self.crop)
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
      raise UserError(f"mean, std, resize and crop must be numbers: {numbers}")
    channels = {len(self.mean), len(self.std)} - {1}
    if len(channels) > 1 or 0 in channels or min(self.std) <= 0:
      raise UserError(
        f"mean={self.mean} and std={self.std} must have one value or one for each "
        "channel, std all > 0"
      )
    if self.resize and self.crop > self.resize:
      raise UserError(f"crop={self.crop} must be at most resize={self.resize}")
    if self.interpolation not in ("bilinear", "bicubic"):
      raise UserError(
        f"interpolation={self.interpolation!r} must be 'bilinear' or 'bicubic'"
      )


def check_channels(label: str, values: Sequence[float], channels: int) -> None:
  """Raises `ValueError` unless there is one value, or one for each channel."""
  if len(values) not in (1, channels):
    raise UserError(
      f"{label} must have 1 value or one for each of the {channels} channels"
    )


def from_dict(values: dict[str, Any]) -> Preprocessing:
  """Inverse of `dataclasses.asdict`, from JSON; errors of all kinds if it is none."""
  values = values | {key: tuple(values[key]) for key in ("mean", "std")}
  return Preprocessing(**values)


def from_timm(values: dict[str, Any]) -> Preprocessing:
  """From timm's `pretrained_cfg`; `crop_pct` is the share of the short side kept."""
  crop = values["input_size"][-1]
  return Preprocessing(
    mean=tuple(values["mean"]),
    std=tuple(values["std"]),
    resize=math.floor(crop / values["crop_pct"]),
    crop=crop,
    interpolation=values["interpolation"],
  )


def preprocessing_of(data: DataConfig) -> Preprocessing:
  """Returns the preprocessing of a run's evaluation."""
  return Preprocessing(
    mean=data.mean,
    std=data.std,
    resize=data.eval_resize,
    crop=data.eval_crop,
    interpolation=data.interpolation,
  )


def with_preprocessing(data: DataConfig, preprocessing: Preprocessing) -> DataConfig:
  """Returns `data` with the evaluation that weights expect."""
  return dataclasses.replace(
    data,
    mean=preprocessing.mean,
    std=preprocessing.std,
    eval_resize=preprocessing.resize,
    eval_crop=preprocessing.crop,
    interpolation=preprocessing.interpolation,
  )
