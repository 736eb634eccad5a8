"""ResNet-18 on Tiny-ImageNet at its own 64 pixels, with a 3x3 stem.

Command: python train.py --config=configs/tiny_imagenet_resnet18_64.py
--config.data.dir=tiny-imagenet-200 --workdir=RUN

Source of the recipe: `tiny_imagenet_resnet18.py`, but for the stem, the crop
(zero-padded by 8 pixels, as CIFAR's nets are trained with 4 of 32) and a weight decay
of 5e-4. Kim et al. 2020 (Puzzle Mix, arXiv 2009.06962) report 57.23 % for a
pre-activation ResNet-18 trained for longer.

Not yet trained with this package on all of the data.
"""

from configs import tiny_imagenet_resnet18
from resnet_jax.config import Config


def get_config() -> Config:
  config = tiny_imagenet_resnet18.get_config()
  config.model.stem = "cifar"
  config.data.train_resize = config.data.image_size = 64
  config.data.eval_resize = config.data.eval_crop = 64
  config.augment.padding = 8
  config.optim.weight_decay = 5e-4
  return config
