"""A batch of images as every data set gives it to the step."""

import jax

# image [B, H, W, C] uint8; label [B] int32 in [0, K); mask [B] bool, False for padding.
Batch = dict[str, jax.Array]
