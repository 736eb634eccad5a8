"""ResNet-50 on Tiny-ImageNet enlarged to 224 pixels, as `tiny_imagenet_resnet18.py`.

Command: python train.py --config=configs/tiny_imagenet_resnet50.py
--config.data.dir=tiny-imagenet-200 --workdir=RUN

No published accuracy of this very recipe is known to us.

Not yet trained with this package on all of the data.
"""

from configs import tiny_imagenet_resnet18
from resnet_jax.config import Config


def get_config() -> Config:
  config = tiny_imagenet_resnet18.get_config()
  config.model.name = "resnet50"
  return config
