"""ResNet-18 on ImageNet for 90 epochs, as `imagenet_resnet50.py`.

Command: python train.py --config=configs/imagenet_resnet18.py --config.data.dir=DIR
--workdir=RUN

torchvision's weights of a like recipe have 69.76 % top-1 (1 crop; IMAGENET1K_V1).

Not yet trained with this package.
"""

from configs import imagenet_resnet50
from resnet_jax.config import Config


def get_config() -> Config:
  config = imagenet_resnet50.get_config()
  config.model.name = "resnet18"
  return config
