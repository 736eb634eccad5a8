"""The paper's CIFAR-10 nets with the paper's recipe (He et al. 2015, section 4.2).

Command: python train.py --config=configs/cifar10_resnet20.py --config.data.dir=DIR
--workdir=RUN, or --config=configs/cifar10_resnet20.py:resnet56 for a sibling.

After the colon: resnet20, 32, 44, 56, 110 or 1202, or plain20 .. plain1202. Batch 128,
learning rate 0.1 divided by 10 at 32k and 48k of 64k updates, momentum 0.9, weight
decay 1e-4 on every parameter, shifts of up to 4 pixels and flips, option A shortcuts.
ResNet-110 and 1202 start with 400 updates at 0.01 (the paper: until the training
error is below 80 %, about 400 updates).

Test error in the paper's table 6, trained on 45k or 50k images: resnet20 8.75 %,
resnet32 7.51, resnet44 7.17, resnet56 6.97, resnet110 6.43, resnet1202 7.93. What
differs here: a mean and standard deviation per channel instead of a mean per pixel,
and updates are counted in epochs of 390 full batches.

Seen here: 55.9 % test top-1 after the first 600 updates of resnet20 (about 10 minutes
on 2 cores of a shared CPU, 2026-11-21). Not yet run to the end.
"""

from resnet_jax.config import (
  AugmentConfig,
  CheckpointConfig,
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
)

DEPTHS = (20, 32, 44, 56, 110, 1202)
NAMES = [f"{kind}{depth}" for kind in ("resnet", "plain") for depth in DEPTHS]


def get_config(name: str = "resnet20") -> Config:
  if name not in NAMES:
    raise ValueError(f"config {name!r} is unknown; choose from {', '.join(NAMES)}")
  config = Config(
    num_steps=64_000,
    batch_size=128,
    steps_per_call=10,
    log_every_steps=100,
    eval_every_steps=2000,
    # The deepest compile for minutes otherwise.
    model=ModelConfig(name=name, scan=name.endswith(("110", "1202"))),
    data=DataConfig(
      name="cifar10",
      # Of the training images.
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
  if name in ("resnet110", "resnet1202"):
    config.optim.warmup = "constant"
    config.optim.warmup_steps = 400
    config.optim.warmup_learning_rate = 0.01
  return config
