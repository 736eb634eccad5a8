"""ResNet-18 with CIFAR's stem to 94 % on CIFAR-10 in few epochs, for one GPU.

Commands, for the mean and spread over ten seeds:
for seed in 0 1 2 3 4 5 6 7 8 9; do python train.py --config=configs/cifar10_fast.py
--config.data.dir=DIR --config.seed=$seed --workdir=RUN/$seed; done

After the entries of DAWNBench (Coleman et al. 2017), whose measure was the time to
94 %: large batches, a short warmup to a high learning rate with Nesterov's momentum,
and erased rectangles (DeVries & Taylor 2017). The images stay on the device, and an
epoch is one call.

Not yet trained with this package.
"""

from resnet_jax.config import (
  AugmentConfig,
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
)


def get_config() -> Config:
  return Config(
    num_epochs=16,
    batch_size=512,
    steps_per_call=97,
    log_every_steps=97,
    model=ModelConfig(name="resnet18", stem="cifar"),
    data=DataConfig(
      name="cifar10",
      mean=(0.4914, 0.4822, 0.4465),
      std=(0.2470, 0.2435, 0.2616),
    ),
    augment=AugmentConfig(padding=4, flip=True, erasing=0.5),
    optim=OptimConfig(
      learning_rate=0.4,
      nesterov=True,
      weight_decay=5e-4,
      schedule="cosine",
      warmup_epochs=3,
      label_smoothing=0.1,
    ),
  )
