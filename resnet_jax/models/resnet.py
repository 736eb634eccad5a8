"""The residual network: a stem, stages of blocks, global average pooling, a classifier.

Parameter paths are public: `stem/conv/kernel`, `stage2/block1/conv1/kernel`,
`stage2/block1/shortcut/conv/kernel`, `head/kernel`. All numbers start at 1.

Shapes: B batch, H height, W width, C input channels.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from resnet_jax.config.allowed import check_choice
from resnet_jax.models.blocks import BasicBlock, Noise
from resnet_jax.models.groups import BODY
from resnet_jax.models.layers import Conv, ModuleDef, norm_relu
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.old_names import TakesOldNames
from resnet_jax.models.scan_layout import to_named, to_scanned
from resnet_jax.models.shortcuts import ProjectionShortcut
from resnet_jax.models.stems import ImageNetStem
from resnet_jax.runtime.arrays import AnyArray, Array, Float, Float32, PRNGKeyArray
from resnet_jax.runtime.errors import UserError

# PyTorch's default for a linear layer: uniform within 1 / sqrt(inputs).
_head_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Stage(nn.Module):
  """Identical blocks in a row; only the first one has the stride.

  Attributes:
    num_blocks: number of blocks.
    block_cls: called as `block_cls(stride=..., name=...)`.
    stride: stride of the first block.
    dilation: dilation of the blocks' 3x3 convolutions.
    first_dilation: dilation of the first block's convolution that carries the stride.
      It is used only if `dilation` is above 1.
    scan: run all blocks but the first as one under `nn.scan`, with the variables of
      `scan_layout.py`. The backward pass then reuses the outputs of the convolutions
      and the batch-norm moments of all blocks, and recomputes the rest.
    remat: keep only the blocks' inputs for the backward pass, and recompute the rest.
    last_block_cls: `block_cls` of the last block; None is the same. It excludes `scan`.
  """

  num_blocks: int
  block_cls: ModuleDef
  stride: int
  dilation: int = 1
  first_dilation: int = 1
  scan: bool = False
  remat: bool = False
  last_block_cls: ModuleDef | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], noise: Noise | None = None
  ) -> Float[Array, "b _ _ _"]:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), block output].

    Args:
      x: output of the previous stage.
      noise: keys and rates of dropout and stochastic depth, for each block along the
        first axis; None in evaluation.
    """

    def noise_of(blocks: int | slice) -> Noise | None:
      taken: Noise | None = jax.tree.map(lambda leaf: leaf[blocks], noise)
      return taken

    def run(block: nn.Module, x: Array, noise: Noise | None) -> tuple[jax.Array, None]:
      return block(x, noise), None  # A scan needs a carry and an output.

    if self.remat or self.scan:
      # `nn.scan` copies all that it keeps for the backward pass. Normalised outputs are
      # not kept, because computing them again costs no more than copying them.
      names = () if self.remat else ("conv", "moments")
      policy = jax.checkpoint_policies.save_only_these_names(*names)
      run = nn.remat(run, prevent_cse=not self.scan, policy=policy)
    block, first = self.block_cls, {"stride": self.stride}
    # All blocks have the same variables, so `init` may scan.
    last = None if self.is_initializing() else self.last_block_cls
    if last is not None and self.scan:
      raise UserError("frozen='body' excludes scan and the scanned layout")
    last = last or block
    if self.dilation > 1:
      block, last = (partial(b, dilation=self.dilation) for b in (block, last))
      first["first_dilation"] = self.first_dilation
    block_of = [*[block] * (self.num_blocks - 1), last]
    x, _ = run(block_of[0](**first, name="block1"), x, noise_of(0))
    if self.scan and self.num_blocks > 1:
      scan = nn.scan(
        run,
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True},
        length=self.num_blocks - 1,
      )
      x, _ = scan(block(name="blocks"), x, noise_of(slice(1, None)))
    else:
      for i in range(1, self.num_blocks):
        x, _ = run(block_of[i](name=f"block{i + 1}"), x, noise_of(i))
    return x


class ResNet(TakesOldNames):
  """Residual network for image classification (He et al. 2015, arXiv 1512.03385).

  Attributes:
    stage_sizes: number of blocks of each stage.
    num_classes: number of logits.
    features: channels of the first stage's blocks. They double at each later stage,
      and the resolution halves.
    stem_features: channels of the stem; None is `features`.
    block_cls: a block of `blocks.py`. `partial(BottleneckBlock, expansion=2)`, for
      example, changes its width.
    stem_cls: the layers before the first stage. `Backbone` reads their `STRIDE`.
    conv_cls: the convolution of all layers, `Conv` or a subclass.
    norm_cls: a norm of `norms.py`, or any class with the same interface.
    shortcut_cls: how blocks combine their input with the output of their convolutions.
    pre_activation: the blocks start with norm and ReLU. The stem then does not end with
      them, and both follow the last stage (He et al. 2016).
    zero_init_residual: initialise every block to equal its shortcut.
    stochastic_depth: probability of dropping the last block for an example in training.
      It rises linearly from the first block (Huang et al. 2016, eq. 4).
    dropout: dropout probability inside the blocks, for blocks that have dropout.
    frozen: names of `groups` that stay in evaluation mode during training. Their norms
      use the running statistics and do not update them, and nothing is dropped. "body"
      is all but the last norm and the head, see `frozen_mask`; it excludes `scan`. The
      optimiser must freeze the parameters, see `training/optimizer.py`.
    scan: run the identical blocks of a stage as one under `nn.scan`, so that deeper
      networks do not take longer to compile. `init` then returns the scanned layout of
      `scan_layout.py`; `apply` accepts both layouts.
    remat: save memory: the backward pass recomputes the activations inside blocks.
    dtype: dtype of the computation. Parameters, batch-norm statistics and logits are
      always float32.
  """

  stage_sizes: Sequence[int]
  num_classes: int = 1000
  features: int = 64
  stem_features: int | None = None
  block_cls: ModuleDef = BasicBlock
  stem_cls: ModuleDef = ImageNetStem
  conv_cls: ModuleDef = Conv
  norm_cls: ModuleDef = BatchNorm
  shortcut_cls: ModuleDef = ProjectionShortcut
  pre_activation: bool = False
  zero_init_residual: bool = False
  stochastic_depth: float = 0.0
  dropout: float = 0.0
  frozen: Sequence[str] = ()
  scan: bool = False
  remat: bool = False
  dtype: DTypeLike = jnp.float32

  @property
  def groups(self) -> tuple[str, ...]:
    """Names of the groups of parameters, in order: "stem", "stage1" ... "head"."""
    stages = (f"stage{i + 1}" for i in range(len(self.stage_sizes)))
    return "stem", *stages, *(["bn"] if self.pre_activation else []), "head"

  @property
  def _trains_last_norm(self) -> bool:
    """Whether the last norm of the last stage is trained and the stage is not."""
    last = f"stage{len(self.stage_sizes)}"
    is_frozen = self.pre_activation or last in self.frozen
    return BODY in self.frozen and not is_frozen

  @property
  def stage_strides(self) -> tuple[int, ...]:
    """Stride of each stage's output, in pixels of the image; 4 for an unknown stem."""
    stem = getattr(self.stem_cls(self.stem_features or self.features), "STRIDE", 4)
    return tuple(stem * 2**i for i in range(len(self.stage_sizes)))

  @property
  def stage_features(self) -> tuple[int, ...]:
    """Channels of each stage's output."""
    widths = (self.features * 2**i for i in range(len(self.stage_sizes)))
    return tuple(self.block_cls(width).out_features for width in widths)

  def setup(self) -> None:
    for group in self.frozen:
      check_choice("frozen", group, (*self.groups, BODY))
    self.head = nn.Dense(self.num_classes, kernel_init=_head_init)

  def __call__(
    self, images: Float[AnyArray, "b h w c"], train: bool = False
  ) -> Float32[Array, "b {self.num_classes}"]:
    """Returns logits.

    Args:
      images: normalised, with as many channels as the images given to `init`.
      train: whether to normalise by the batch's own statistics and update the running
        ones; `apply` then needs `mutable=["batch_stats"]`. Stochastic depth and dropout
        are then on too; they need `rngs={"dropout": key}`.
    """
    x = self.stages(images, train)[-1]
    return self.head(x.astype(jnp.float32).mean(axis=(1, 2)))

  @nn.compact
  def stages(
    self,
    images: Float[AnyArray, "b h w c"],
    train: bool = False,
    output_stride: int | None = None,
  ) -> list[Float[Array, "b _ _ _"]]:
    """Returns the output of each stage. The arguments are those of `Backbone`."""
    conv = partial(self.conv_cls, dtype=self.dtype)
    any_norm = partial(self.norm_cls, dtype=self.dtype)
    frozen = set(self.frozen)
    if BODY in frozen:
      frozen |= set(self.groups) - {"bn", "head"}

    def norm_of(group: str) -> ModuleDef:
      return partial(any_norm, use_running_average=not train or group in frozen)

    stem = self.stem_cls(
      self.stem_features or self.features,
      pre_activation=self.pre_activation,
      conv_cls=conv,
      norm_cls=norm_of("stem"),
      name="stem",
    )
    kept = len(self.stage_sizes)  # Number of stages that keep their stride.
    if output_stride is not None:
      strides = self.stage_strides
      if output_stride not in strides:
        raise UserError(f"output_stride={output_stride!r} must be one of {[*strides]}")
      kept = 1 + strides.index(output_stride)
    x, outputs = stem(jnp.asarray(images, self.dtype)), []
    for i, noise in enumerate(self._noise(train)):
      name = f"stage{i + 1}"
      norm = norm_of(name)
      block = partial(
        self.block_cls,
        self.features * 2**i,
        zero_init=self.zero_init_residual,
        conv_cls=conv,
        norm_cls=norm,
        shortcut_cls=partial(self.shortcut_cls, conv_cls=conv, norm_cls=norm),
        **({"dropout": self.dropout} if self.dropout else {}),
      )
      last_block = None
      if self._trains_last_norm and i == len(self.stage_sizes) - 1:
        last_norm = partial(any_norm, use_running_average=not train)
        last_block = partial(block, last_norm_cls=last_norm)
      x = self._stage_type(name)(
        self.stage_sizes[i],
        block,
        stride=1 if i == 0 or i >= kept else 2,
        dilation=2 ** max(0, i + 1 - kept),
        first_dilation=2 ** max(0, i - kept),
        remat=self.remat,
        last_block_cls=last_block,
        name=name,
      )(x, None if name in frozen else noise)
      outputs.append(x)
    if self.pre_activation:
      outputs[-1] = norm_relu(norm_of("bn")(name="bn"), x)
    return outputs

  def _noise(self, train: bool) -> Sequence[Noise | None]:
    """Returns the keys and rates of dropout and stochastic depth of each stage."""
    if not train or not (self.stochastic_depth or self.dropout):
      return [None] * len(self.stage_sizes)
    total = sum(self.stage_sizes)
    keys = jax.random.split(self.make_rng("dropout"), total)
    rates = None
    if self.stochastic_depth:
      rates = self.stochastic_depth * jnp.arange(1, total + 1) / total
    noise, first = [], 0
    for size in self.stage_sizes:
      part = slice(first, first + size)
      noise.append(Noise(keys[part], None if rates is None else rates[part]))
      first += size
    return noise

  def _stage_type(self, name: str) -> ModuleDef:
    """Returns a `Stage` that can run on the given variables.

    `init` always scans. So scanned and unrolled networks start with identical
    parameters, and deeper networks do not take longer to initialise.
    """
    is_init = self.is_initializing()
    scanned = "blocks" in self.variables.get("params", {}).get(name, {})
    if not (is_init or self.scan or scanned):
      return Stage
    stage = Stage
    if not scanned and not (is_init and self.scan):
      stage = nn.map_variables(
        Stage,
        ["params", "batch_stats"],
        trans_in_fn=to_scanned,
        trans_out_fn=to_named,
        init=is_init,
        mutable=True,
      )
    return partial(stage, scan=True)


def init_head(key: PRNGKeyArray, inputs: int, num_classes: int) -> dict[str, Array]:
  """Returns new parameters for the last layer of a head, "kernel" and "bias"."""
  layer = nn.Dense(num_classes, kernel_init=_head_init, parent=None)
  params: dict[str, Array] = layer.init(key, jnp.zeros((1, inputs)))["params"]
  return params


def as_resnet(model: nn.Module, purpose: str) -> ResNet:
  """Returns `model` if it is a `ResNet`.

  Args:
    model: any network.
    purpose: what needs a `ResNet`, for the message.

  Raises:
    UserError: `model` is another module.
  """
  if not isinstance(model, ResNet):
    raise UserError(f"{purpose} need a ResNet, not {type(model).__name__}")
  return model
