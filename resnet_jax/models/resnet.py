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

from resnet_jax.config.allowed import check_choice
from resnet_jax.models.blocks import BasicBlock, Noise
from resnet_jax.models.layers import Conv, ModuleDef
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.old_names import TakesOldNames
from resnet_jax.models.scan_layout import to_named, to_scanned
from resnet_jax.models.shortcuts import ProjectionShortcut
from resnet_jax.models.stems import ImageNetStem
from resnet_jax.runtime.arrays import AnyArray, Array, Float, Float32
from resnet_jax.runtime.errors import UserError

# PyTorch's default for a linear layer: uniform within 1 / sqrt(inputs).
_head_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Stage(nn.Module):
  """Equal blocks one after the other; only the first one has the stride.

  Attributes:
    num_blocks: how many.
    block_cls: called as `block_cls(stride=..., name=...)`.
    stride: of the first block.
    dilation: of the blocks' 3x3 convolutions.
    first_dilation: of the one that has the stride, where that was taken away.
    scan: run the others as one under `nn.scan`, with the variables of `scan_layout.py`.
      For the backward pass all keep convolutions and moments, and normalise anew.
    remat: keep only the blocks' inputs for the backward pass, compute the rest anew.
  """

  num_blocks: int
  block_cls: ModuleDef
  stride: int
  dilation: int = 1
  first_dilation: int = 1
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], noise: Noise | None = None
  ) -> Float[Array, "b _ _ _"]:
    """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), block output].

    Args:
      x: of the stage before.
      noise: of each block, along the first axis; None in evaluation.
    """

    def noise_of(blocks: int | slice) -> Noise | None:
      taken: Noise | None = jax.tree.map(lambda leaf: leaf[blocks], noise)
      return taken

    def run(block: nn.Module, x: Array, noise: Noise | None) -> tuple[jax.Array, None]:
      return block(x, noise), None  # What a scan wants: carry and output.

    if self.remat or self.scan:
      # A loop copies what is kept; to normalise anew costs no more than that.
      names = () if self.remat else ("conv", "moments")
      policy = jax.checkpoint_policies.save_only_these_names(*names)
      run = nn.remat(run, prevent_cse=not self.scan, policy=policy)
    block, first = self.block_cls, {"stride": self.stride}
    if self.dilation > 1:
      block = partial(block, dilation=self.dilation)
      first["first_dilation"] = self.first_dilation
    x, _ = run(block(**first, name="block1"), x, noise_of(0))
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
        x, _ = run(block(name=f"block{i + 1}"), x, noise_of(i))
    return x


class ResNet(TakesOldNames):
  """Residual network for image classification (He et al. 2015, arXiv 1512.03385).

  Attributes:
    stage_sizes: number of blocks of each stage.
    num_classes: number of logits.
    features: of the first stage's blocks; they double at each stage, where the
      resolution halves.
    stem_features: channels of the stem; None is `features`.
    block_cls: one of `blocks.py`; `partial(BottleneckBlock, expansion=2)` and the like
      change its width.
    stem_cls: the layers before the first stage; `STRIDE` is theirs, for `Backbone`.
    norm_cls: one of `norms.py`, or anything that is called like them.
    shortcut_cls: how blocks join their input with what their convolutions made of it.
    pre_activation: the blocks start with norm and ReLU, so the stem goes without and
      both follow the last stage (He et al. 2016).
    zero_init_residual: start every block as its shortcut.
    stochastic_depth: probability that the last block is dropped for an example in
      training; rises linearly from the first (Huang et al. 2016, eq. 4).
    dropout: inside the blocks, for those that have it.
    frozen: which of `groups` stay in evaluation mode in training: their norms use and
      keep the running statistics, and nothing is dropped. Their parameters stay too if
      the optimiser leaves them, see `training/optimizer.py`.
    scan: run the equal blocks of a stage as one under `nn.scan`: compilation no
      longer takes longer for deeper nets. `init` then gives the scanned layout of
      `scan_layout.py`; `apply` takes either.
    remat: save memory by computing activations inside blocks twice.
    dtype: of the computation. Parameters, batch-norm statistics and logits are
      float32 whatever it is.
  """

  stage_sizes: Sequence[int]
  num_classes: int = 1000
  features: int = 64
  stem_features: int | None = None
  block_cls: ModuleDef = BasicBlock
  stem_cls: ModuleDef = ImageNetStem
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
    """Names of the parts that the parameters are in, from the first: "stem" ..."""
    stages = (f"stage{i + 1}" for i in range(len(self.stage_sizes)))
    return "stem", *stages, *(["bn"] if self.pre_activation else []), "head"

  def setup(self) -> None:
    for group in self.frozen:
      check_choice("frozen", group, self.groups)
    self.head = nn.Dense(self.num_classes, kernel_init=_head_init)

  def __call__(
    self, images: Float[AnyArray, "b h w c"], train: bool = False
  ) -> Float32[Array, "b {self.num_classes}"]:
    """Returns logits.

    Args:
      images: normalised. C is fixed by the first call (`init`).
      train: normalise by the batch's own statistics, and update the running ones,
        for which `apply` needs `mutable=["batch_stats"]`; drop what is to be
        dropped, for which it needs `rngs={"dropout": key}`.
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
    """Returns what comes out of each stage; all is as in `Backbone`."""
    conv = partial(Conv, dtype=self.dtype)

    def norm_of(group: str) -> ModuleDef:
      in_evaluation = not train or group in self.frozen
      return partial(self.norm_cls, use_running_average=in_evaluation, dtype=self.dtype)

    stem = self.stem_cls(
      self.stem_features or self.features,
      pre_activation=self.pre_activation,
      conv_cls=conv,
      norm_cls=norm_of("stem"),
      name="stem",
    )
    kept = len(self.stage_sizes)  # Stages that have their strides.
    if output_stride is not None:
      strides = [stem.STRIDE * 2**i for i in range(kept)]
      if output_stride not in strides:
        raise UserError(f"output_stride={output_stride!r} must be one of {strides}")
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
      x = self._stage_type(name)(
        self.stage_sizes[i],
        block,
        stride=1 if i == 0 or i >= kept else 2,
        dilation=2 ** max(0, i + 1 - kept),
        first_dilation=2 ** max(0, i - kept),
        remat=self.remat,
        name=name,
      )(x, None if name in self.frozen else noise)
      outputs.append(x)
    if self.pre_activation:
      outputs[-1] = nn.relu(norm_of("bn")(name="bn")(x))
    return outputs

  def _noise(self, train: bool) -> Sequence[Noise | None]:
    """Returns each stage's randomness."""
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
    """Returns `Stage` as it must be to run on the variables that are given.

    `init` always scans, so that scanned and unrolled nets start with the same
    numbers, and no net takes longer to initialise for being deeper.
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


def as_resnet(model: nn.Module, purpose: str) -> ResNet:
  """Returns a network that is a `ResNet`.

  Args:
    model: any network.
    purpose: what needs a `ResNet`, for the message.

  Raises:
    UserError: it is another module.
  """
  if not isinstance(model, ResNet):
    raise UserError(f"{purpose} need a ResNet, not {type(model).__name__}")
  return model


class Backbone(nn.Module):
  """A residual network without its head, for detection, segmentation and the like.

  Its variables are those of the network: what was trained or loaded for that, such as
  `weights.load(path, net)`, fits as it is; the head's parameters are not looked at. In
  a module that calls `net` too, the two do not share theirs.

  Attributes:
    net: the network, such as `create_model("resnet50")`.
    output_stride: of the coarsest map, in pixels of the image: later strides are
      replaced by dilation of what follows them, so that the same weights see the same
      pixels at more places (Chen et al. 2017, "Rethinking atrous convolution",
      section 3.1). None keeps all strides; else that of a stage: 4, 8, 16 or 32 for
      ImageNet nets, 1, 2 or 4 for CIFAR's.
  """

  net: ResNet
  output_stride: int | None = None

  @nn.compact
  def __call__(
    self, images: Float[AnyArray, "b h w c"], train: bool = False
  ) -> dict[str, Float[Array, "b _ _ _"]]:
    """Returns the last map of each stage.

    Args:
      images: normalised.
      train: as of `ResNet`.

    Returns:
      "c2", "c3", "c4" and, of nets with four stages, "c5": [B, ceil(H / stride),
      ceil(W / stride), features]. Strides are 4, 8, 16 and 32 (1, 2 and 4 with CIFAR's
      stem), and none more than `output_stride`. Features are 64, 128, 256 and 512 (16,
      32 and 64 for CIFAR's nets), or with bottleneck blocks 4 times that; wide CIFAR
      nets have k times as many. All are in the net's dtype, and after ReLU, but for
      pre-activation nets, of which the last only is.

    Raises:
      UserError: no stage has `output_stride`, or `net` is no `ResNet`.
    """
    net = as_resnet(self.net, "backbones").clone(
      parent=self, name=None
    )  # Another module may have made it.
    nn.share_scope(self, net)
    outputs = net.stages(images, train, self.output_stride)
    return {f"c{i}": x for i, x in enumerate(outputs, start=2)}
