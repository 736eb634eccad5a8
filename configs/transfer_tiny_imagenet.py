"""Fine-tunes a CIFAR-10 ResNet-44 on Tiny-ImageNet, or on any folder of images.

Command: python train.py --config=configs/transfer_tiny_imagenet.py
--config.init_from=resnet44-014dd654.th --config.data.dir=tiny-imagenet-200
--workdir=RUN

The weights are those of akamaster/pytorch_resnet_cifar10; photos are made as small as
the images that they were trained on. The new head learns ten times as fast as the rest.

Seen with 20 of the classes, 100 training images of each (620 updates in 2 minutes on 2
CPU cores, 2026-11-23, jax 0.10.2, one seed), on their 1,000 validation images:
60.10 % top-1. From scratch with the same budget, without --config.init_from and with
--config.optim.learning_rate_multipliers= : 27.5 % at --config.optim.learning_rate=0.05,
26.1 % at 0.1. With --config.freeze=stem,stage1,stage2: 58.4 %. With
--config.data.train_crop=random_resized --config.data.min_area=0.25: 54.5 %.
"""

from resnet_jax.config import Config


def get_config() -> Config:
  config = Config(num_epochs=20, batch_size=64)
  config.model.name = "resnet44"
  config.data.name = "folder"
  config.data.eval_split = "val"
  config.data.train_crop = "random"
  config.data.train_resize = config.data.image_size = 32
  config.data.eval_resize = config.data.eval_crop = 32
  # What the weights were trained with.
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.augment.padding = 4
  config.augment.flip = True
  config.optim.learning_rate = 0.02
  config.optim.learning_rate_multipliers = "head=10"
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "cosine"
  config.optim.warmup_epochs = 1
  return config
