"""ResNet-14 on CIFAR-10 with Adam, the small network of many tutorials.

Command:
resnet-jax train --config=cifar10_resnet14_adam --config.data.dir=DIR --workdir=RUN

The network has three stages of two blocks, with 16, 32 and 64 channels. The batch has
128 images, and a run has 20 epochs. The pixels are scaled to [-1, 1]. The learning rate
of Adam is 1e-3. There is no augmentation and no weight decay.

Seed 0 has 75.25 % test top-1 at the end, on 2026-11-26 on one H100 in bfloat16. Its
best evaluation has 78.23 %: without augmentation the network overfits. The updates took
half a minute, at 37,000 images/s.
"""

from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig


def get_config() -> Config:
  return Config(
    num_epochs=20,
    batch_size=128,
    steps_per_call=10,
    log_every_steps=100,
    model=ModelConfig(name="resnet14", shortcut="B"),
    data=DataConfig(name="cifar10", mean=(0.5,), std=(0.5,)),
    optim=OptimConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
  )
