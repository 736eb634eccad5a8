"""A batch of images as every data set gives it to the step."""

from collections.abc import Callable
from typing import TypeVar

import jax

# image [B, H, W, C] uint8; label [B] int32 in [0, K); mask [B] bool, False for padding.
Batch = dict[str, jax.Array]

# (feed, number) -> Batch, where a feed is what the data set gives to a call.
Feed = TypeVar("Feed")
TakeBatch = Callable[[Feed, jax.Array], Batch]
