"""Shortcuts: how a block combines its input with the output of its convolutions.

Each is called as `shortcut(features, stride, ...)(x, residual)`. `x` is the block's
input, and `residual` is the output of its convolutions.

Shapes: B batch, H height, W width, C input channels.
"""

from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.models.layers import Conv, ModuleDef, conv_norm
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.old_names import TakesOldNames
from resnet_jax.models.pooling import average_pool
from resnet_jax.runtime.arrays import Array, Float


class _Shortcut(TakesOldNames):
  """Base class of the shortcuts.

  Attributes:
    features: output channels.
    stride: step along both spatial axes.
    dilation: distance between the pixels that a pool or a kernel combines, if dilation
      replaced the block's stride of 2; else None.
    norm_cls: norm after a convolution; None for no norm (pre-activation).
  """

  features: int
  stride: int
  dilation: int | None = None
  conv_cls: ModuleDef = Conv
  norm_cls: ModuleDef | None = BatchNorm

  # Whether a call returns `residual + project(x)`. It is False for a subclass that
  # overrides `__call__` but does not set ADDS.
  ADDS: ClassVar[bool] = False

  def __init_subclass__(cls, **kwargs: Any) -> None:
    if "__call__" in vars(cls) and "ADDS" not in vars(cls):
      cls.ADDS = False
    super().__init_subclass__(**kwargs)


class IdentityShortcut(_Shortcut):
  """Option A: every `stride`-th pixel, new channels filled with zeros; no parameters.

  Half of the zero channels go on each side, as in the widely used CIFAR weights of
  akamaster/pytorch_resnet_cifar10. The paper (section 4.1) does not say where they go.
  """

  ADDS: ClassVar[bool] = True

  def __call__(
    self, x: Float[Array, "b h w c"], residual: Float[Array, "b h2 w2 f"]
  ) -> Float[Array, "b h2 w2 f"]:
    """Joins [B, H, W, C] and [B, ceil(H / stride), ceil(W / stride), features]."""
    return residual + self.project(x)

  def project(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b _ _ {self.features}"]:
    """Returns `x` in the shape of the block's output."""
    before, odd = divmod(self.features - x.shape[-1], 2)
    x = x[:, :: self.stride, :: self.stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, before + odd)))


class ProjectionShortcut(_Shortcut):
  """Options B and C: a 1x1 convolution where the shape changes (B) or always (C).

  Attributes:
    always: option C.
    pool: average 2x2 pixels, then convolve at stride 1. A 1x1 convolution at stride 2
      would skip three quarters of the pixels (ResNet-D: He et al. 2018, "Bag of
      tricks").
    kernel_size: height and width of the kernel where the stride is above 1; 3 in
      SENet-154 (Hu et al. 2017, section 6.1).
  """

  ADDS: ClassVar[bool] = True

  always: bool = False
  pool: bool = False
  kernel_size: int = 1

  def __call__(
    self, x: Float[Array, "b h w c"], residual: Float[Array, "b h2 w2 f"]
  ) -> Float[Array, "b h2 w2 f"]:
    """Joins [B, H, W, C] and [B, ceil(H / stride), ceil(W / stride), features]."""
    return residual + self.project(x)

  @nn.compact
  def project(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b _ _ {self.features}"]:
    """Returns `x` in the shape of the block's output."""
    if not self.always and self.stride == 1 and x.shape[-1] == self.features:
      return x
    stride, settings = self.stride, dict[str, int]()
    if self.pool and (stride > 1 or self.dilation is not None):
      x, stride = average_pool(x, stride, self.dilation or 1), 1
    size = self.kernel_size if stride > 1 or self.dilation is not None else 1
    if size > 1 and self.dilation is not None:
      settings["dilation"] = self.dilation
    conv = self.conv_cls(self.features, size, stride, **settings, name="conv")
    if self.norm_cls is None:
      y: Array = conv(x)
      return y
    return conv_norm(conv, self.norm_cls(name="bn"), x, relu=False)


class HighwayShortcut(ProjectionShortcut):
  """y = T(x) F(x) + (1 - T(x)) x; T is a sigmoid of a 1x1 convolution of the input.

  A baseline for residual learning (Srivastava et al. 2015, eq. 3; He et al. 2016,
  "Identity mappings", section 3.1, exclusive gating).

  Attributes:
    gate_bias: initial bias of T; negative values let the input through at first
      (Srivastava et al. 2015, section 2.2, suggest -1 or -3).
  """

  gate_bias: float = -3.0

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], residual: Float[Array, "b h2 w2 f"]
  ) -> Float[Array, "b h2 w2 f"]:
    """Joins [B, H, W, C] and [B, ceil(H / stride), ceil(W / stride), features]."""
    bias_init = nn.initializers.constant(self.gate_bias)
    gate = nn.Dense(
      self.features, bias_init=bias_init, dtype=residual.dtype, name="gate"
    )
    transform = nn.sigmoid(gate(x[:, :: self.stride, :: self.stride]))
    return transform * residual + (1 - transform) * self.project(x)


class NoShortcut(_Shortcut):
  """No shortcut: turns a residual block into a plain one."""

  def __call__(
    self, x: Float[Array, "b h w c"], residual: Float[Array, "b h2 w2 f"]
  ) -> Float[Array, "b h2 w2 f"]:
    """Returns `residual`."""
    return residual


SHORTCUTS = {
  "A": IdentityShortcut,
  "B": ProjectionShortcut,
  "C": partial(ProjectionShortcut, always=True),
  "D": partial(ProjectionShortcut, pool=True),
  "B3x3": partial(ProjectionShortcut, kernel_size=3),
  "highway": HighwayShortcut,
  "none": NoShortcut,
}
