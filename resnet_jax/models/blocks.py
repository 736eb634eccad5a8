"""Residual blocks: two 3x3 convolutions, or 1x1, 3x3, 1x1, around a shortcut.

Each is called as `block(x, noise)`; `noise` is a `Noise` or None.

Shapes: B batch, H height, W width, C input channels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from resnet_jax.models.layers import Conv, ModuleDef, conv_norm, drop_path, norm_relu
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.old_names import TakesOldNames
from resnet_jax.models.shortcuts import ProjectionShortcut
from resnet_jax.runtime.arrays import Array, Float, Float32
from resnet_jax.runtime.errors import UserError


@struct.dataclass
class Noise:
  """Randomness of one block in training, or of several blocks along a first axis.

  Attributes:
    key: PRNG key.
    drop_path: probability of dropping the block (stochastic depth); None drops nothing.
  """

  key: Array
  drop_path: Float32[Array, "*blocks"] | None = None


class Block(TakesOldNames):
  """Base class of the residual blocks.

  Attributes:
    features: channels of the 3x3 convolutions. A `BottleneckBlock` multiplies them by
      `groups * base_width / 64`.
    stride: stride of the block.
    expansion: the block's output has `expansion * features` channels.
    zero_init: initialise the block to equal its shortcut (Goyal et al. 2017, section
      5.1). The scale of the last batch norm then starts at 0. In a pre-activation
      block, the last kernel does.
    shortcut_cls: combines the block's input with the output of its convolutions.
    attention_cls: layer between the last convolution and the shortcut, such as
      `SqueezeExcite`.
    dilation: dilation of the 3x3 convolutions.
    first_dilation: dilation of the convolution that carries the stride; None is
      `dilation`. Where dilation replaces the stride, this convolution keeps the
      dilation of the previous stage.
    anti_alias: a function such as `blur_pool` that carries the stride; the convolution
      before it then has stride 1 (Zhang 2019, section 3.2). None leaves the stride to
      the convolution.
    last_norm_cls: the norm after the last convolution; None is `norm_cls`. A
      pre-activation block has no such norm.
  """

  features: int
  stride: int = 1
  expansion: int = 1
  zero_init: bool = False
  conv_cls: ModuleDef = Conv
  norm_cls: ModuleDef = BatchNorm
  shortcut_cls: ModuleDef = ProjectionShortcut
  attention_cls: ModuleDef | None = None
  dilation: int = 1
  first_dilation: int | None = None
  anti_alias: Callable[[Array, int, int], Array] | None = None
  last_norm_cls: ModuleDef | None = None

  @property
  def out_features(self) -> int:
    """Channels of the output."""
    return self.expansion * self.features

  def conv3x3(
    self, features: int, stride: int | None = None, **kwargs: Any
  ) -> nn.Module:
    """Returns a 3x3 convolution.

    Passing `stride` marks the convolution that carries the block's stride.
    """
    dilation = self.dilation
    if stride is not None and self.first_dilation is not None:
      dilation = self.first_dilation
    if self.anti_alias is not None:
      stride = 1
    if dilation > 1:
      kwargs["dilation"] = dilation
    conv: nn.Module = self.conv_cls(features, 3, stride or 1, **kwargs)
    return conv

  def bottleneck_strides(self) -> tuple[int, int | None]:
    """Returns the strides of a bottleneck's first two convolutions."""
    if not getattr(self, "stride_on_1x1", False):
      return 1, self.stride
    if self.anti_alias is not None:
      raise UserError(
        "stride_on_1x1 needs anti_alias=None: anti_alias follows a 3x3 convolution"
      )
    return self.stride, None

  def anti_aliased(self, y: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Applies `anti_alias`, if any, after the layer that would carry the stride."""
    if self.anti_alias is None or (self.stride == 1 and self.first_dilation is None):
      return y
    return self.anti_alias(y, self.stride, self.first_dilation or 1)

  def join(
    self,
    shortcut: nn.Module,
    x: Float[Array, "b h w c"],
    residual: Float[Array, "b h2 w2 f"],
    noise: Noise | None,
  ) -> Float[Array, "b h2 w2 f"]:
    """Applies attention, stochastic depth and the shortcut."""
    if self.attention_cls is not None:
      residual = self.attention_cls(name="se")(residual)
    if noise is not None and noise.drop_path is not None:
      residual = drop_path(residual, noise.key, noise.drop_path)
    joined: Array = shortcut(x, residual)
    return joined

  def last(
    self,
    conv: nn.Module,
    norm_name: str,
    y: Float[Array, "b _ _ _"],
    x: Float[Array, "b h w c"],
    noise: Noise | None,
  ) -> Float[Array, "b _ _ {self.out_features}"]:
    """Applies the last convolution and norm, the shortcut and ReLU.

    `y` is the input of the last convolution, and `x` is the input of the block.
    """
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    scale_init = zeros if self.zero_init else ones
    norm_cls = self.last_norm_cls or self.norm_cls
    norm = norm_cls(scale_init=scale_init, name=norm_name)
    lost = {} if self.first_dilation is None else {"dilation": self.first_dilation}
    shortcut = self.shortcut_cls(
      self.out_features, self.stride, name="shortcut", **lost
    )
    if (
      self.attention_cls is None and noise is None and getattr(shortcut, "ADDS", False)
    ):
      return conv_norm(conv, norm, y, shortcut=shortcut, start=x)
    return nn.relu(self.join(shortcut, x, conv_norm(conv, norm, y, relu=False), noise))


class BasicBlock(Block):
  """Two 3x3 convolutions plus a shortcut (He et al. 2015, figure 2)."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], noise: Noise | None = None
  ) -> Float[Array, "b _ _ {self.out_features}"]:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), out_features]."""
    conv1 = self.conv3x3(self.features, self.stride, name="conv1")
    y = self.anti_aliased(conv_norm(conv1, self.norm_cls(name="bn1"), x))
    return self.last(self.conv3x3(self.out_features, name="conv2"), "bn2", y, x, noise)


class BottleneckBlock(Block):
  """1x1, 3x3 and 1x1 convolutions plus a shortcut (He et al. 2015, figure 5).

  Attributes:
    groups: groups of the 3x3 convolution (ResNeXt: Xie et al. 2016).
    base_width: channels of one group of the 3x3 convolution if `features` is 64; they
      grow in proportion to `features`. 128 gives Wide ResNet-50-2; 4 with 32 groups
      gives ResNeXt-50 32x4d.
    first_reduction: the first convolution has this many times fewer channels than the
      3x3 one; 2 in SENet-154 (Hu et al. 2017, section 6.1).
    stride_on_1x1: put the stride on the first convolution, as in the paper ("v1").
      Without it, the stride is on the 3x3 convolution, as in torchvision ("v1.5").
  """

  expansion: int = 4
  groups: int = 1
  base_width: int = 64
  first_reduction: int = 1
  stride_on_1x1: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], noise: Noise | None = None
  ) -> Float[Array, "b _ _ {self.out_features}"]:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), out_features]."""
    strides = self.bottleneck_strides()
    width = self.features * self.base_width // 64 * self.groups
    narrow = width // self.first_reduction
    conv1 = self.conv_cls(narrow, 1, strides[0], name="conv1")
    y = conv_norm(conv1, self.norm_cls(name="bn1"), x)
    conv2 = self.conv3x3(width, strides[1], groups=self.groups, name="conv2")
    y = self.anti_aliased(conv_norm(conv2, self.norm_cls(name="bn2"), y))
    return self.last(
      self.conv_cls(self.out_features, 1, name="conv3"), "bn3", y, x, noise
    )


class PreActBlock(Block):
  """Norm and ReLU before each convolution, not after it (He et al. 2016, figure 1b).

  A shortcut that changes the shape takes the input after the first norm and ReLU, and
  has no norm of its own.
  """

  def last_conv_options(self) -> dict[str, Any]:
    """Returns the arguments of the block's last convolution."""
    return {"kernel_init": nn.initializers.zeros} if self.zero_init else {}

  def join_preact(
    self,
    x: Float[Array, "b h w c"],
    activated: Float[Array, "b h w c"],
    residual: Float[Array, "b h2 w2 f"],
    noise: Noise | None,
  ) -> Float[Array, "b h2 w2 f"]:
    """Calls `join`; a shortcut that changes the shape gets `activated`, not `x`."""
    same = self.stride == 1 and x.shape[-1] == self.out_features
    shortcut = self.shortcut_cls(
      self.out_features, self.stride, name="shortcut", norm_cls=None
    )
    return self.join(shortcut, x if same else activated, residual, noise)


class PreActBasicBlock(PreActBlock):
  """Two 3x3 convolutions, pre-activated.

  Attributes:
    dropout: probability of zeroing a value between the convolutions in training
      (Zagoruyko & Komodakis 2016, section 2.4).
  """

  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], noise: Noise | None = None
  ) -> Float[Array, "b _ _ {self.out_features}"]:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), out_features]."""
    activated = norm_relu(self.norm_cls(name="bn1"), x)
    conv1 = self.conv3x3(self.features, self.stride, name="conv1")
    y = self.anti_aliased(conv_norm(conv1, self.norm_cls(name="bn2"), activated))
    if noise is not None and self.dropout:
      kept = jax.random.bernoulli(
        jax.random.fold_in(noise.key, 1), 1 - self.dropout, y.shape
      )
      y = jnp.where(kept, y / (1 - self.dropout), 0)
    conv2 = self.conv3x3(self.out_features, name="conv2", **self.last_conv_options())
    return self.join_preact(x, activated, conv2(y), noise)


class PreActBottleneckBlock(PreActBlock):
  """1x1, 3x3 and 1x1 convolutions, pre-activated.

  Attributes:
    stride_on_1x1: put the stride on the first convolution. Without it, the stride is on
      the 3x3 convolution.
  """

  expansion: int = 4
  stride_on_1x1: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], noise: Noise | None = None
  ) -> Float[Array, "b _ _ {self.out_features}"]:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), out_features]."""
    strides = self.bottleneck_strides()
    activated = norm_relu(self.norm_cls(name="bn1"), x)
    conv1 = self.conv_cls(self.features, 1, strides[0], name="conv1")
    y = conv_norm(conv1, self.norm_cls(name="bn2"), activated)
    conv2 = self.conv3x3(self.features, strides[1], name="conv2")
    y = self.anti_aliased(conv_norm(conv2, self.norm_cls(name="bn3"), y))
    conv3 = self.conv_cls(
      self.out_features, 1, name="conv3", **self.last_conv_options()
    )
    return self.join_preact(x, activated, conv3(y), noise)
