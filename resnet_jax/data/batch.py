"""The batch of images that every data set gives to the step."""

from collections.abc import Callable
from typing import TypeVar

from resnet_jax.runtime.arrays import Array, Int

# image [B, H, W, C] uint8, or uint16 if `data.max_value` is set or the images in memory
# are uint16; mask [B] bool, False for padding; label, see `LabelSpec`.
Batch = dict[str, Array]

# (feed, batch number) -> Batch. A feed is the data that a data set passes to one call.
Feed = TypeVar("Feed")
TakeBatch = Callable[[Feed, Int[Array, ""]], Batch]
