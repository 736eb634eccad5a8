"""The settings of the network.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses

from resnet_jax.config import allowed


@dataclasses.dataclass(slots=True)
class ModelConfig:
  """The network.

  Attributes:
    name: architecture, a key of `resnet_jax.MODELS`, such as resnet50 or plain20.
    factory: import path of your own network, "package.module:function". The function
      takes this `ModelConfig`, with `num_classes` and `dtype` filled in. It returns a
      Flax module that maps images to logits. `name` is then unused.
    num_classes: number of outputs; 0 takes the number of classes of the data, or the
      number of numbers of a label.
    stem: first layers: "imagenet" (7x7 convolution and max-pool), "deep" (three 3x3
      convolutions and max-pool), "tiered" (narrower), "cifar" (one 3x3 convolution),
      one with another pooling, or "" for the architecture's own.
    shortcut: "A" (identity with zero padding), "B" (projection where the shape
      changes), "B3x3" (by a 3x3 kernel), "C" (projection everywhere), "D" (B after an
      average pool), "highway", "none", or "" for the architecture's own.
    norm: "batch"; "unbiased_batch" (batch norm with PyTorch's running variance);
      "group"; "frozen" (batch norm with constant statistics); "evo" (EvoNorm-S0);
      "filter_response"; "none" (a bias instead); or "" for the architecture's own.
    zero_init_residual: initialise the last scale of each block with 0, so that each
      block starts as its shortcut.
    stochastic_depth: probability of dropping the last block for an image in training.
      The probability rises linearly from the first block to the last.
    scan: compile the identical blocks of a stage only once, which is faster.
    remat: recompute activations in the backward pass: less memory and more time.
    dtype: data type of the computation; "auto" is bfloat16 on GPU and TPU, and float32
      on CPU.
  """

  name: str = "resnet20"
  factory: str = allowed.factory()
  num_classes: int = allowed.at_least(0, 0)
  stem: str = allowed.choice(
    *("", "", "imagenet", "deep", "tiered", "cifar", "imagenet_average"),
    *("deep_average", "imagenet_blur", "deep_blur", "deep_conv", "imagenet_zeros"),
    "imagenet_bias_zeros",
  )
  shortcut: str = allowed.choice("", "", "A", "B", "C", "D", "B3x3", "highway", "none")
  norm: str = allowed.choice(
    *("", "", "batch", "unbiased_batch", "group", "frozen"),
    *("evo", "filter_response", "none"),
  )
  zero_init_residual: bool = False
  stochastic_depth: float = allowed.setting(0.0, "in [0, 1)", lambda v: 0 <= v < 1)
  scan: bool = False
  remat: bool = False
  dtype: str = allowed.choice("auto", "auto", "float32", "bfloat16")
