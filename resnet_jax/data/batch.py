"""A batch of images as every data set gives it to the step."""

from collections.abc import Callable
from typing import TypeVar

from resnet_jax.runtime.arrays import Array, Int

# image [B, H, W, C] uint8; label [B] int32 in [0, K); mask [B] bool, False for padding.
Batch = dict[str, Array]

# (feed, number) -> Batch, where a feed is what the data set gives to a call.
Feed = TypeVar("Feed")
TakeBatch = Callable[[Feed, Int[Array, ""]], Batch]
