"""ResNet-44, trained on CIFAR-10 and fine-tuned on Tiny-ImageNet at 32 pixels.

Command:
resnet-jax train --config=transfer_tiny_imagenet
--config.init_from=resnet44-014dd654.th --config.data.dir=tiny-imagenet-200
--workdir=RUN

The weights are those of akamaster/pytorch_resnet_cifar10. The photos are made as small
as the images on which they were trained. The new head learns ten times as fast as the
rest. For your own photos take `finetune_photos`, which uses 224 pixels.

The network was trained on 20 of the classes with 100 training images of each
(2026-11-23, jax 0.10.2, one seed). A run had 620 updates and took 2 minutes on 2 CPU
cores. Top-1 accuracy on the 1,000 validation images of these classes:
  60.10 % with the settings of this file;
  58.4 % with --config.freeze=stem,stage1,stage2;
  54.5 % with --config.data.train_crop=random_resized --config.data.min_area=0.25;
  27.5 % from scratch at --config.optim.learning_rate=0.05;
  26.1 % from scratch at --config.optim.learning_rate=0.1.
From scratch, --config.init_from is left out, and
--config.optim.learning_rate_multipliers= is added.
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
  config.optim.learning_rate_multipliers = {"head": 10.0}
  config.optim.weight_decay = 5e-4
  config.optim.schedule = "cosine"
  config.optim.warmup_epochs = 1
  return config
