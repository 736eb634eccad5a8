"""An experiment's settings: typed dataclasses, checked once.

A file in `configs/` returns a `Config`, and `--config.a.b=value` changes it.
`validation.py` refuses wrong types and values before anything is compiled. Each field
states its allowed values, and whether they may change when a run is resumed.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses
from collections.abc import Mapping

from resnet_jax.config import allowed


def _has_fixed_schedule(config: "Config") -> bool:
  """Whether the learning rate of a step is independent of the length of the run."""
  return config.optim.schedule != "cosine"


@dataclasses.dataclass(slots=True)
class ModelConfig:
  """The network.

  Attributes:
    name: architecture, a key of `resnet_jax.MODELS`, such as resnet50 or plain20.
    factory: import path of your own network, "package.module:function". The function
      takes this `ModelConfig`, with `num_classes` and `dtype` filled in. It returns a
      Flax module that maps images to logits. `name` is then unused.
    num_classes: number of logits; 0 takes the number of classes of the data.
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


@dataclasses.dataclass(slots=True)
class DataConfig:
  """The images.

  Attributes:
    name: data set: "digits" (included), "synthetic" (noise with one pattern per class),
      "folder" (image files), "cifar10" or "cifar100" (official archives), or the name
      of a TFDS data set that was prepared as array_record.
    factory: import path of your own data set, "package.module:function". The function
      takes this `DataConfig` and the name of a split. It returns an `ImageSource` or an
      `ImageArrays`. `name` is then unused.
    dir: where the data is. For TFDS, its data directory; "" is ~/tensorflow_datasets.
      For "folder", a directory with one folder per class, with or without train/ and
      val/ above the classes; or Tiny-ImageNet as downloaded; or a .csv file of
      path,label. For CIFAR, the archive, packed or not, or the folder that holds it.
    train_split: training split. For TFDS, in its syntax, such as "train[:45000]". For
      "folder", the name of the split's folder. The included sets have "train" and
      "test".
    eval_split: evaluation split, written like train_split; "" takes the validation
      split if the data set has one, and else the test split.
    val_share: fraction of each class of a "folder" without splits that is kept for
      evaluation.
    mean, std: normalisation. Pixels are scaled to [0, 1]; then `mean` is subtracted,
      and the result is divided by `std`. One value, or one per channel. The default
      scales to [-1, 1]. An empty value (--config.data.mean=) is replaced by the value
      of the weights in `init_from`, or by ImageNet's if `init_from` is empty.
    train_crop: crop of training images that are decoded while training runs.
      "random_resized" takes a part of random size and shape, and resizes it. "random"
      takes a random square of the resized image. "folder" and large TFDS sets need one
      of them. Without a crop, a small TFDS set is decoded once, before training.
    min_area: smallest fraction of the image area that "random_resized" takes.
    train_resize: length in pixels to which the short side of training images is resized
      before the "random" crop; 0 does not resize.
    image_size: side length of the training crop, or of "synthetic" images, in pixels.
    eval_resize: length in pixels to which evaluation resizes the short side of images;
      0 does not resize; -1 takes the value of the weights, as an empty `mean` does.
    eval_crop: side length in pixels of the square that evaluation cuts out of the
      middle after resizing; 0 does not crop; -1 takes the value of the weights, as an
      empty `mean` does.
    interpolation: "bilinear" or "bicubic", both antialiased; "" takes the value of the
      weights, as an empty `mean` does. The parts that "random_resized" takes are always
      resized bilinearly, without antialiasing.
    channel_order: "rgb" or "bgr", also of `mean` and `std`; "" is that of the weights.
    num_examples: number of images of "synthetic" in each of its two splits.
    on_error: what to do with an unreadable image. "raise" ends the run with an error
      that names the image. "skip" counts it; training takes the next image instead, and
      evaluation leaves it out.
    max_skip_share: fraction of skipped images above which "skip" ends the run too.
    max_pixels: largest number of pixels of an image; a larger image is unreadable.
    num_threads: number of threads that decode images; 0 is one per core.
    num_workers: number of processes for these threads; 0 is enough below 16 cores.
  """

  name: str = "digits"
  factory: str = allowed.factory()
  dir: str = allowed.changeable("")
  train_split: str = "train"
  eval_split: str = ""
  val_share: float = allowed.setting(0.1, "in (0, 1)", lambda v: 0 < v < 1)
  mean: tuple[float, ...] = allowed.setting(
    (0.5,),
    "in [0, 1] for each channel, as pixels are scaled to [0, 1]",
    lambda v: not v or (min(v) >= 0 and max(v) <= 1),
  )
  std: tuple[float, ...] = allowed.setting(
    (0.5,),
    "in (0, 1] for each channel, as pixels are scaled to [0, 1]",
    lambda v: not v or (min(v) > 0 and max(v) <= 1),
  )
  train_crop: str = allowed.choice("", "", "random_resized", "random")
  min_area: float = allowed.setting(0.08, "in (0, 1]", lambda v: 0 < v <= 1)
  train_resize: int = allowed.pixels(0, 0)
  image_size: int = allowed.pixels(32, 1)
  eval_resize: int = allowed.pixels(0, -1)
  eval_crop: int = allowed.pixels(0, -1)
  interpolation: str = allowed.choice("bilinear", "bilinear", "bicubic", "")
  channel_order: str = allowed.choice("rgb", "rgb", "bgr", "")
  num_examples: int = allowed.positive(1024)
  on_error: str = allowed.choice("raise", "raise", "skip", may_change=True)
  max_skip_share: float = allowed.setting(
    0.01, "in (0, 1]", lambda v: 0 < v <= 1, may_change=True
  )
  # Pillow itself refuses more.
  max_pixels: int = allowed.between(100_000_000, 1, 178_000_000)
  num_threads: int = allowed.between(0, 0, 1024, may_change=True)
  num_workers: int = allowed.between(0, 0, 1024, may_change=True)


@dataclasses.dataclass(slots=True)
class AugmentConfig:
  """Random changes to training images.

  Attributes:
    padding: largest random shift along each axis, in pixels (zero-pad, then crop).
    flip: mirror a random half of the images left to right.
    policy: "trivial" (TrivialAugment), "rand" (RandAugment) or "". It needs
      `data.train_crop`, as it runs on the host.
    magnitude: strength of RandAugment.
    brightness, contrast, saturation: largest relative change of each.
    hue: largest change of the hue, as a fraction of a full turn.
    erasing: probability of erasing a random rectangle of an image.
    mixup, cutmix: alpha of mixup and of CutMix; 0 turns it off. If both are on, each
      batch gets one of them at random.
    image_factory: import path of your own augmentation of single images on the host,
      "package.module:function". The function takes this `AugmentConfig` and returns a
      function (image [H, W, 3] uint8, `np.random.Generator`) -> image. It runs after
      the crop, and needs `data.train_crop`.
    batch_factory: import path of your own augmentation of batches in the compiled step,
      "package.module:function". The function takes this `AugmentConfig` and returns a
      function (key, images [B, H, W, C] uint8) -> images. It runs before the others.
  """

  padding: int = allowed.pixels(0, 0)
  flip: bool = False
  policy: str = allowed.choice("", "", "trivial", "rand")
  magnitude: int = allowed.between(9, 0, 30)
  brightness: float = allowed.between(0.0, 0, 2)
  contrast: float = allowed.between(0.0, 0, 2)
  saturation: float = allowed.between(0.0, 0, 2)
  hue: float = allowed.between(0.0, 0, 0.5)
  erasing: float = allowed.between(0.0, 0, 1)
  mixup: float = allowed.between(0.0, 0, 100)
  cutmix: float = allowed.between(0.0, 0, 100)
  image_factory: str = allowed.factory()
  batch_factory: str = allowed.factory()


@dataclasses.dataclass(slots=True)
class OptimConfig:
  """Optimiser and learning rate.

  Attributes:
    name: "sgd"; "adam" (weight decay as an L2 penalty, as in PyTorch); "adamw"
      (decoupled weight decay); or "lars" (You et al. 2017) and "lamb" (You et al. 2020)
      for batches of thousands of images.
    learning_rate: peak learning rate, which is reached at the end of warmup.
    factory: import path of your own optimiser, "package.module:function". The function
      takes the schedule (step -> learning rate) and returns an
      `optax.GradientTransformation`. `name`, `momentum`, `weight_decay` and `clip_norm`
      are then unused.
    learning_rate_multipliers: factors of the learning rate for groups of parameters,
      such as {"head": 10, "stem": 0.1} in Python, or head=10,stem=0.1 on the command
      line. The groups are those of `freeze`.
    reference_batch_size: batch size for which `learning_rate` is given. The rate is
      multiplied by batch_size / reference_batch_size (Goyal et al. 2017); 0 does not
      scale it.
    batch_scaling: "linear", or "sqrt" to scale by the square root of that ratio, which
      is common with Adam and LAMB.
    momentum: momentum of SGD and LARS.
    nesterov: use Nesterov's momentum.
    weight_decay: coefficient of the L2 penalty, or of the decoupled decay.
    decay_all: apply weight decay to biases and batch-norm parameters too, as the paper
      did. Without it, weight decay applies to kernels only.
    schedule: after warmup, "step" multiplies the rate by `decay_factor` at each
      boundary; "cosine" decreases it to 0 at the last step.
    decay_epochs, decay_steps: boundaries of "step", counted from the start of training,
      in epochs or in steps.
    decay_factor: factor of the learning rate at each boundary.
    warmup: "linear" increases the rate from `warmup_learning_rate` to `learning_rate`;
      "constant" keeps it at `warmup_learning_rate`; "head" trains the head alone, at
      `learning_rate`, and leaves all other parameters as they are.
    warmup_epochs, warmup_steps: length of warmup, in epochs or in steps.
    warmup_learning_rate: learning rate at the first step of warmup.
    label_smoothing: probability that is spread evenly over all classes.
    accumulate: number of parts into which a batch is split. They are computed one after
      the other, which saves memory. `batch_size` is still the size of the whole batch.
    ema_decay: EMA decay per update, of parameters and batch-norm statistics; 0 disables
      it. The EMA weights are evaluated too, and are saved as the best.
    clip_norm: largest global norm of the gradient; 0 does not clip.
    shard_state: split the optimiser state over the devices to save memory (ZeRO-1).
    skip_nonfinite: skip and count updates whose loss or gradient is not finite. Without
      it, such an update ends the run.
  """

  name: str = allowed.choice("sgd", "sgd", "adam", "adamw", "lars", "lamb")
  factory: str = allowed.factory()
  learning_rate: float = allowed.positive(0.1)
  learning_rate_multipliers: Mapping[str, float] = dataclasses.field(
    default_factory=dict,
    metadata={
      "allowed": "factors >= 0 of groups, such as head=10,stem=0.1",
      "check": lambda v: all(factor >= 0 for factor in v.values()),
    },
  )
  reference_batch_size: int = allowed.at_least(0, 0)
  batch_scaling: str = allowed.choice("linear", "linear", "sqrt")
  momentum: float = allowed.setting(0.9, "in [0, 1)", lambda v: 0 <= v < 1)
  nesterov: bool = False
  weight_decay: float = allowed.at_least(1e-4, 0)
  decay_all: bool = False
  schedule: str = allowed.choice("step", "step", "cosine")
  decay_epochs: tuple[float, ...] = allowed.increasing(())
  decay_steps: tuple[int, ...] = allowed.increasing(())
  decay_factor: float = allowed.setting(0.1, "in (0, 1]", lambda v: 0 < v <= 1)
  warmup: str = allowed.choice("linear", "linear", "constant", "head")
  warmup_epochs: float = allowed.at_least(0.0, 0)
  warmup_steps: int = allowed.at_least(0, 0)
  warmup_learning_rate: float = allowed.at_least(0.0, 0)
  label_smoothing: float = allowed.setting(0.0, "in [0, 1)", lambda v: 0 <= v < 1)
  accumulate: int = allowed.positive(1)
  ema_decay: float = allowed.setting(0.0, "in [0, 1)", lambda v: 0 <= v < 1)
  clip_norm: float = allowed.at_least(0.0, 0)
  shard_state: bool = allowed.changeable(False)
  skip_nonfinite: bool = allowed.changeable(False)


@dataclasses.dataclass(slots=True)
class CheckpointConfig:
  """Checkpoints. Each evaluation saves one, and so does the end of training.

  Attributes:
    every_steps: number of steps between additional checkpoints; 0 saves none of these.
    keep: number of newest checkpoints to keep. The best checkpoint is also kept.
  """

  every_steps: int = allowed.at_least(0, 0, may_change=True)
  keep: int = allowed.at_least(2, 1, may_change=True)


@dataclasses.dataclass(slots=True)
class Config:
  """One experiment.

  Attributes:
    seed: seed of initialisation, shuffling and augmentation.
    num_epochs: length of training in epochs; unused if `num_steps` is set.
    num_steps: length of training in steps; 0 takes `num_epochs`.
    batch_size: number of images per step, over all devices.
    steps_per_call: largest number of steps that one call of the compiled function
      makes.
    log_every_steps, log_every_epochs: period of the logs of training metrics, in steps
      or in epochs, such as 0.5. If both are 0, the run logs every 50 steps, or once per
      epoch if an epoch has fewer steps.
    eval_every_steps, eval_every_epochs: period of evaluations in steps or in epochs. If
      both are 0, it is one epoch. The last step is always evaluated.
    kernels: how convolution and batch norm are computed. "xla" is XLA's way. "native"
      is this package's C++ kernels, for a machine with one CPU device and a C++
      compiler. "auto" is "native" where that is possible. The results differ by
      rounding only.
    bn_scope: devices over which batch norm pools its statistics in training. "global"
      is all devices; "device" is each device alone, without communication, as in the
      paper; a number such as 4 is groups of that many devices. With `optim.accumulate`,
      the images of one part are pooled.
    init_from: trained weights to start from. The head is not taken. It is a run (RUN or
      RUN/checkpoints/STEP), or a file or name that `weights.load` reads.
    freeze: groups of parameters that do not change: any of stem, stage1, stage2, ...
      and head. Their batch-norm statistics do not change either. On the command line,
      the groups are separated by commas.
    task: import path of your own `Task`, "package.module:function". The function takes
      the config and returns the task; "" is classification.
    precise_bn_batches: training batches used to re-estimate batch-norm statistics
      before each evaluation, as the paper's authors did; 0 keeps the running
      statistics.
  """

  seed: int = allowed.setting(0, "in [0, 2**31)", lambda v: 0 <= v < 2**31)
  num_epochs: float = allowed.positive(1.0, may_change=_has_fixed_schedule)
  num_steps: int = allowed.setting(
    0, "in [0, 2**31)", lambda v: 0 <= v < 2**31, may_change=_has_fixed_schedule
  )
  batch_size: int = allowed.positive(128)
  steps_per_call: int = allowed.positive(10, may_change=True)
  log_every_steps: int = allowed.at_least(0, 0, may_change=True)
  log_every_epochs: float = allowed.at_least(0.0, 0, may_change=True)
  eval_every_steps: int = allowed.at_least(0, 0, may_change=True)
  eval_every_epochs: float = allowed.at_least(0.0, 0, may_change=True)
  kernels: str = allowed.choice("auto", "auto", "xla", "native", may_change=True)
  bn_scope: int | str = allowed.setting(
    "global",
    "'global', 'device' or a number of devices, such as 4",
    lambda v: v in ("global", "device") if isinstance(v, str) else v > 0,
  )
  init_from: str = ""
  freeze: tuple[str, ...] = ()
  task: str = allowed.factory()
  precise_bn_batches: int = allowed.at_least(0, 0)
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
  optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
  checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
