"""Recipes of the studies: the paper's two, two shorter ones, and one for digits."""

from resnet_jax.config.schema import (
  AugmentConfig,
  CheckpointConfig,
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
)


def smoke() -> Config:
  """scikit-learn's digits, 8x8 pixels: takes minutes on a laptop."""
  return Config(
    num_steps=500,
    batch_size=32,
    steps_per_call=25,
    log_every_steps=25,
    eval_every_steps=125,
    model=ModelConfig(scan=True),  # Deep networks compile as fast as others.
    data=DataConfig(name="digits"),
    optim=OptimConfig(
      learning_rate=0.02, decay_all=True, warmup_steps=100, decay_steps=(250, 375)
    ),
  )


def cifar10() -> Config:
  """The paper's recipe for CIFAR-10 (He et al. 2015, section 4.2).

  Batch 128, learning rate 0.1 divided by 10 at 32k and 48k of 64k updates, momentum
  0.9, weight decay 1e-4 on every parameter, shifts of up to 4 pixels and flips. It
  differs from the paper in two ways: images are normalised by a mean and a standard
  deviation per channel, not by a mean per pixel; and an epoch is 390 full batches.
  """
  return Config(
    num_steps=64_000,
    batch_size=128,
    steps_per_call=10,
    log_every_steps=100,
    eval_every_steps=2000,
    data=DataConfig(
      name="cifar10",
      # Mean and standard deviation of the training images.
      mean=(0.4914, 0.4822, 0.4465),
      std=(0.2470, 0.2435, 0.2616),
    ),
    checkpoint=CheckpointConfig(every_steps=500),
    augment=AugmentConfig(padding=4, flip=True),
    optim=OptimConfig(
      learning_rate=0.1,
      momentum=0.9,
      weight_decay=1e-4,
      decay_all=True,
      decay_steps=(32_000, 48_000),
    ),
  )


# Warmup of the deepest networks in the paper's table 6. There it lasts until the
# training error is below 80 %, "about 400" updates.
WARMUP = {
  "optim.warmup": "constant",
  "optim.warmup_steps": 400,
  "optim.warmup_learning_rate": 0.01,
}


def short() -> Config:
  """CIFAR-10 by the paper's recipe, in 3,500 of its 64,000 updates.

  The learning rate rises for the first 100 updates. Without this warmup, the deeper
  networks lose hundreds of updates, and this recipe is too short to recover from that.
  """
  config = cifar10()
  config.num_steps = 3500
  config.log_every_steps = 50
  config.eval_every_steps = 500
  config.checkpoint.every_steps = 0
  config.optim.warmup_steps = 100
  config.optim.decay_steps = (1750, 2625)
  return config


def medium() -> Config:
  """CIFAR-10 by a quarter of the paper's schedule: 16,000 updates, drops at 8k and 12k.

  This is long enough for plain networks of 56 layers to learn.
  """
  config = cifar10()
  config.num_steps = 16_000
  config.eval_every_steps = 1000
  config.optim.decay_steps = (8000, 12_000)
  return config


def imagenet() -> Config:
  """The paper's recipe for ImageNet (section 3.4).

  Batch 256, learning rate 0.1 divided by 10 when the error no longer falls: here after
  30 and 60 of 90 epochs. Evaluation uses one crop; the paper's tables use ten.
  """
  return Config(
    num_epochs=90,
    batch_size=256,
    steps_per_call=1,
    log_every_steps=100,
    data=DataConfig(
      name="imagenet2012",
      eval_split="validation",
      mean=(0.485, 0.456, 0.406),
      std=(0.229, 0.224, 0.225),
      train_crop="random_resized",
      image_size=224,
      eval_resize=256,
      eval_crop=224,
    ),
    augment=AugmentConfig(flip=True),
    optim=OptimConfig(
      learning_rate=0.1,
      momentum=0.9,
      weight_decay=1e-4,
      decay_all=True,
      decay_epochs=(30, 60),
    ),
  )
