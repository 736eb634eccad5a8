"""An experiment's settings: typed dataclasses, checked once.

A file in `configs/` returns a `Config`, and `--config.a.b=value` changes it.
`validation.py` refuses wrong types and values before anything is compiled. A field says
itself which values it takes, and whether a resumed run may have another value.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses
import difflib
from collections.abc import Collection, Mapping

from resnet_jax.config import allowed
from resnet_jax.runtime.errors import UserError


def check_choice(field: str, value: str, allowed: Collection[str]) -> None:
  """Raises `ValueError` naming the nearest allowed values if `value` is not one."""
  if value not in allowed:
    near = difflib.get_close_matches(value, allowed, n=4) or sorted(allowed)
    raise UserError(
      f"{field}={value!r} is unknown; did you mean {', '.join(near)}?",
      setting=field.removeprefix("config."),
      value=value,
    )


def _has_fixed_schedule(config: "Config") -> bool:
  """Whether the learning rate of a step is independent of the length of the run."""
  return config.optim.schedule != "cosine"


@dataclasses.dataclass(slots=True)
class ModelConfig:
  """Which network.

  Attributes:
    name: a key of `resnet_jax.MODELS`: resnet50, resnet20, plain20, resnext50_32x4d...
    factory: import path of an own network, "package.module:function". The function
      takes this `ModelConfig`, whose `num_classes` and `dtype` are then known, and
      returns a Flax module that maps images to logits; `name` is then unused.
    num_classes: number of logits; 0 takes it from the data.
    stem: "imagenet", "deep", "cifar", or "" for the architecture's own.
    shortcut: "A", "B", "C", "D", "highway", "none", or "" for the architecture's own.
    norm: "batch"; "unbiased_batch", with PyTorch's running variance; "group";
      "frozen", a batch norm that never moves; or "none", a bias in its place.
    zero_init_residual: start every block as its shortcut.
    stochastic_depth: probability that the last block is left out for an image in
      training; it rises linearly from the first.
    scan: compile the equal blocks of a stage once, for deep nets.
    remat: less memory for more time: compute activations inside blocks twice.
    dtype: of the computation; "auto" is bfloat16 on GPU and TPU, float32 on CPU.
  """

  name: str = "resnet20"
  factory: str = allowed.factory()
  num_classes: int = allowed.at_least(0, 0)
  stem: str = allowed.choice("", "", "imagenet", "deep", "cifar")
  shortcut: str = allowed.choice("", "", "A", "B", "C", "D", "highway", "none")
  norm: str = allowed.choice(
    "batch", "batch", "unbiased_batch", "group", "frozen", "none"
  )
  zero_init_residual: bool = False
  stochastic_depth: float = allowed.setting(0.0, "in [0, 1)", lambda v: 0 <= v < 1)
  scan: bool = False
  remat: bool = False
  dtype: str = allowed.choice("auto", "auto", "float32", "bfloat16")


@dataclasses.dataclass(slots=True)
class DataConfig:
  """Which images.

  Attributes:
    name: "digits" (embedded), "synthetic" (noise with a pattern for each class),
      "folder" (images in files), or the name of a TFDS image-classification set
      prepared as array_record.
    factory: import path of an own data set, "package.module:function". The function
      takes this `DataConfig` and the name of a split, and returns an `ImageSource` or
      an `ImageArrays`; `name` is then unused.
    dir: TFDS data directory, "" is TFDS's default, ~/tensorflow_datasets; of "folder":
      a folder for each class, with or without train/ and val/ above them;
      Tiny-ImageNet as it is downloaded; or a .csv file of path,label.
    train_split, eval_split: in TFDS's syntax, such as "train[:45000]"; of "folder", the
      folder's name. The built-in sets have "train" and "test". An eval_split of "" is
      the data set's own, validation before test.
    val_share: of a "folder" without splits: the share of each class kept as "val".
    mean, std: subtracted and divided by after scaling pixels to [0, 1]; one value, or
      one for each channel. The default scales to [-1, 1].
    train_crop: of images that are decoded as they are needed (those of "folder", of
      many sizes, or too many for the device): "random_resized", a part of random size
      and shape, or "random", a square of the resized image. Set for a small TFDS set,
      it is read that way too.
    min_area: the smallest share of the image that "random_resized" takes.
    train_resize: short side that training images are resized to, in pixels; 0 does not.
    image_size: side of the training crop, or of "synthetic" images, in pixels.
    eval_resize: short side that evaluation resizes images to, in pixels; 0 does not.
    eval_crop: side of the square that it then cuts from the middle; 0 does not.
    interpolation: of the resizing, antialiased: "bilinear" or "bicubic". The
      "random_resized" parts are resized bilinearly, without.
    num_examples: of "synthetic"; its evaluation split is as large.
    on_error: what to do with an unreadable image: "raise" ends the run with its name;
      "skip" counts it and takes the next one, or leaves it out of evaluation.
    max_skip_share: the share of skipped images that ends the run all the same.
    max_pixels: an image with more is one that cannot be read.
    num_threads: that decode images; 0 is one for each core.
    num_workers: processes that they are spread over; 0 is this one, which is enough
      below about 16 cores.
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
    lambda v: bool(v) and min(v) >= 0 and max(v) <= 1,
  )
  std: tuple[float, ...] = allowed.setting(
    (0.5,),
    "in (0, 1] for each channel, as pixels are scaled to [0, 1]",
    lambda v: bool(v) and min(v) > 0 and max(v) <= 1,
  )
  train_crop: str = allowed.choice("", "", "random_resized", "random")
  min_area: float = allowed.setting(0.08, "in (0, 1]", lambda v: 0 < v <= 1)
  train_resize: int = allowed.at_least(0, 0)
  image_size: int = allowed.positive(32)
  eval_resize: int = allowed.at_least(0, 0)
  eval_crop: int = allowed.at_least(0, 0)
  interpolation: str = allowed.choice("bilinear", "bilinear", "bicubic")
  num_examples: int = allowed.positive(1024)
  on_error: str = allowed.choice("raise", "raise", "skip", may_change=True)
  max_skip_share: float = allowed.setting(
    0.01, "in (0, 1]", lambda v: 0 < v <= 1, may_change=True
  )
  # Pillow refuses more, whatever we allow.
  max_pixels: int = allowed.setting(
    100_000_000, "in [1, 178_000_000]", lambda v: 1 <= v <= 178e6
  )
  num_threads: int = allowed.at_least(0, 0, may_change=True)
  num_workers: int = allowed.at_least(0, 0, may_change=True)


@dataclasses.dataclass(slots=True)
class AugmentConfig:
  """Random changes to training images.

  Attributes:
    padding: largest shift along each axis, in pixels (zero-pad, then crop).
    flip: mirror half of the images left to right.
    policy: "trivial" (TrivialAugment) or "rand" (RandAugment), on the host, of images
      with `data.train_crop`; "" is none.
    magnitude: of RandAugment.
    brightness, contrast, saturation: largest change of each, as a share.
    hue: largest turn of the hue.
    erasing: probability that a rectangle is blanked.
    mixup, cutmix: their alpha; 0 is off, with both one is drawn for each batch.
    image_factory: import path of an own augmentation of one image on the host,
      "package.module:function". The function takes this `AugmentConfig` and returns
      (image [H, W, 3] uint8, `np.random.Generator`) -> image. It follows the crop of
      images with `data.train_crop`.
    batch_factory: import path of an own augmentation of a batch within the compiled
      step. The function takes this `AugmentConfig` and returns (key, images
      [B, H, W, C] uint8) -> images; it comes first.
  """

  padding: int = allowed.at_least(0, 0)
  flip: bool = False
  policy: str = allowed.choice("", "", "trivial", "rand")
  magnitude: int = allowed.setting(9, "in [0, 30]", lambda v: 0 <= v <= 30)
  brightness: float = allowed.at_least(0.0, 0)
  contrast: float = allowed.at_least(0.0, 0)
  saturation: float = allowed.at_least(0.0, 0)
  hue: float = allowed.setting(0.0, "in [0, 0.5]", lambda v: 0 <= v <= 0.5)
  erasing: float = allowed.setting(0.0, "in [0, 1]", lambda v: 0 <= v <= 1)
  mixup: float = allowed.at_least(0.0, 0)
  cutmix: float = allowed.at_least(0.0, 0)
  image_factory: str = allowed.factory()
  batch_factory: str = allowed.factory()


@dataclasses.dataclass(slots=True)
class OptimConfig:
  """Optimiser and learning rate.

  Attributes:
    name: "sgd"; "adam", whose weight decay is an L2 penalty as in PyTorch; "adamw",
      whose weight decay is apart from the gradient's; or, for batches of thousands,
      "lars" (You et al. 2017) or "lamb" (You et al. 2020).
    learning_rate: peak value, reached at the end of warmup.
    factory: import path of an own optimiser, "package.module:function". The function
      takes the schedule (step -> learning rate) and returns an
      `optax.GradientTransformation`; `name`, `momentum`, `weight_decay` and `clip_norm`
      are then unused.
    learning_rate_multipliers: factors of the learning rate of groups of parameters,
      such as {"head": 10, "stem": 0.1}, or head=10,stem=0.1 on the command line. The
      groups are those of `freeze`.
    reference_batch_size: if not 0, the learning rate is for this batch size, and is
      multiplied by batch_size / reference_batch_size (Goyal et al. 2017).
    batch_scaling: "linear", or "sqrt" to multiply by the root of that ratio, as is
      usual with Adam and LAMB.
    momentum, nesterov: of SGD and LARS.
    weight_decay: coefficient of the L2 penalty, of kernels only.
    decay_all: let weight decay act on batch-norm parameters and biases too, as the
      paper did.
    schedule: after warmup, "step" multiplies by `decay_factor` at each boundary;
      "cosine" falls to 0 at the last step.
    decay_epochs, decay_steps: the boundaries, counted from the start of training.
    warmup: "linear" rises from `warmup_learning_rate` to `learning_rate`;
      "constant" stays at `warmup_learning_rate`.
    warmup_epochs, warmup_steps: its length.
    label_smoothing: probability spread evenly over all classes.
    accumulate: number of parts that a batch is split into, computed one after the
      other to save memory; the learning rate and `batch_size` are of the whole.
    ema_decay: EMA decay per update, of parameters and batch-norm statistics; 0 disables
      it. The EMA weights are evaluated too, and saved as the best.
    clip_norm: largest global norm of the gradient; 0 does not clip.
    shard_state: split the optimiser's state over the devices, to save memory (ZeRO-1).
    skip_nonfinite: leave out and count an update whose loss or gradient is not finite;
      else it ends the run.
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
  warmup: str = allowed.choice("linear", "linear", "constant")
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
  """When the state is saved. Always with each evaluation and at the end.

  Attributes:
    every_steps: also every so many steps; 0 does not.
    keep: number of newest checkpoints kept, next to the best one.
  """

  every_steps: int = allowed.at_least(0, 0, may_change=True)
  keep: int = allowed.at_least(2, 1, may_change=True)


@dataclasses.dataclass(slots=True)
class Config:
  """One experiment.

  Attributes:
    seed: of initialisation, shuffling and augmentation.
    num_epochs: length of training; unused where `num_steps` is given.
    num_steps: length of training in updates; 0 takes `num_epochs`.
    batch_size: images of one update, over all devices.
    steps_per_call: most updates of one call of the compiled `train_chunk`.
    log_every_steps: period of training metrics.
    eval_every_steps: period of evaluation; 0 is once an epoch. Always at the end.
    kernels: how convolution and batch norm are computed: "xla"; "native", by this
      package's own C++ kernels, on a machine with one CPU device and a C++ compiler;
      "auto" is "native" where that is possible. They differ by rounding only.
    bn_scope: the devices over which batch norm pools its statistics in training:
      "global", all of them; "device", each for itself, without communication, as in the
      paper; or groups of so many devices, such as 4. With `optim.accumulate` the images
      of one part are pooled.
    init_from: weights to start from, of all but the head, which is new: a run
      (RUN, or RUN/checkpoints/STEP), or a file that `weights.load` reads.
    freeze: groups of parameters that do not change, nor do their batch-norm statistics:
      some of stem, stage1, stage2 ... and head. The command line takes commas between.
    task: import path of an own `Task`, "package.module:function"; the function takes
      the config and returns it. Empty is classification.
    precise_bn_batches: training batches used to re-estimate batch-norm statistics
      before each evaluation, as the paper's authors did; 0 keeps the running ones.
  """

  seed: int = allowed.setting(0, "in [0, 2**31)", lambda v: 0 <= v < 2**31)
  num_epochs: float = allowed.positive(1.0, may_change=_has_fixed_schedule)
  num_steps: int = allowed.at_least(0, 0, may_change=_has_fixed_schedule)
  batch_size: int = allowed.positive(128)
  steps_per_call: int = allowed.positive(10, may_change=True)
  log_every_steps: int = allowed.positive(50, may_change=True)
  eval_every_steps: int = allowed.at_least(0, 0, may_change=True)
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
