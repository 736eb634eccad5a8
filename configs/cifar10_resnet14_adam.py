"""The small ResNet of many tutorials on CIFAR-10: three stages of two blocks, Adam.

Command: python train.py --config=configs/cifar10_resnet14_adam.py
--config.data.dir=DIR --workdir=RUN

Channels 16, 32, 64; batch 128, 20 epochs, inputs scaled to [-1, 1], Adam at 1e-3,
no augmentation and no weight decay. Not yet run to the end here.
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
