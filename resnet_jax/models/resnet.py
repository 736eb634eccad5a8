"""The residual network: a stem, stages of blocks, global average pooling, a classifier.

Parameter paths are public: `stem/conv/kernel`, `stage2/block1/conv1/kernel`,
`stage2/block1/shortcut/conv/kernel`, `head/kernel`; all count from 1.

Shapes: B batch, H height, W width, C input channels.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.layers import (
  BatchNorm,
  Conv,
  ImageNetStem,
  ModuleDef,
  ProjectionShortcut,
)

# PyTorch's default for a linear layer: uniform within 1 / sqrt(inputs).
_head_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Stage(nn.Module):
  """`num_blocks` equal blocks; only the first one has the stride."""

  num_blocks: int
  block: ModuleDef
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), block output]."""
    for i in range(self.num_blocks):
      x = self.block(stride=self.stride if i == 0 else 1, name=f"block{i + 1}")(x)
    return x


class ResNet(nn.Module):
  """Residual network for image classification (He et al. 2015, arXiv 1512.03385).

  Attributes:
    stage_sizes: number of blocks of each stage.
    num_classes: number of logits.
    features: channels of the first stage's blocks; they double at each stage, where
      the resolution halves.
    block: `BasicBlock` or `BottleneckBlock`.
    stem: the layers before the first stage.
    shortcut: what the blocks add to their convolutions' result.
    zero_init_residual: start every block as its shortcut.
    dtype: of the computation. Parameters, batch-norm statistics and logits are
      float32 whatever it is.
  """

  stage_sizes: Sequence[int]
  num_classes: int = 1000
  features: int = 64
  block: ModuleDef = BasicBlock
  stem: ModuleDef = ImageNetStem
  shortcut: ModuleDef = ProjectionShortcut
  zero_init_residual: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Returns logits.

    Args:
      images: [B, H, W, C], floating point and normalised. C is fixed by the first
        call (`init`).
      train: normalise by the batch's own statistics, and update the running ones,
        for which `apply` needs `mutable=["batch_stats"]`.

    Returns:
      [B, num_classes] float32.
    """
    conv = partial(Conv, dtype=self.dtype)
    norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
    parts = {"conv": conv, "norm": norm}
    block = partial(
      self.block,
      zero_init=self.zero_init_residual,
      shortcut=partial(self.shortcut, **parts),
      **parts,
    )
    x = self.stem(self.features, name="stem", **parts)(images.astype(self.dtype))
    for i, num_blocks in enumerate(self.stage_sizes):
      x = Stage(
        num_blocks,
        partial(block, self.features * 2**i),
        stride=1 if i == 0 else 2,
        name=f"stage{i + 1}",
      )(x)
    x = x.astype(jnp.float32).mean(axis=(1, 2))
    return nn.Dense(self.num_classes, kernel_init=_head_init, name="head")(x)
