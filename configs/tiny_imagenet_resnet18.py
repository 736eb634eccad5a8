"""ResNet-18 on Tiny-ImageNet enlarged to 224 pixels.

Command: python train.py --config=configs/tiny_imagenet_resnet18.py
--config.data.dir=tiny-imagenet-200 --workdir=RUN

DIR is the data set as it is downloaded, 200 classes of 500 images of 64 pixels. They
are resized to 256, cropped to 224 at random and flipped, as tutorials do to use
ImageNet's architecture unchanged (`tiny_imagenet_resnet18_64.py` keeps 64 pixels).
Source of the rest: the 90-epoch ImageNet recipe, cut to 30 epochs. No published
accuracy of this very recipe is known to us.

Not yet trained with this package on all of the data. Seen with 20 of the classes, 100
training images of each, and smaller, --config.data.train_resize=96
--config.data.image_size=84 --config.data.eval_resize=96 --config.data.eval_crop=84
--config.num_epochs=20 --config.batch_size=64 --config.optim.learning_rate=0.05
--config.steps_per_call=1: 27.7 % top-1, 68.1 % top-5 on the 1,000 validation images
(2026-11-22, jax 0.10.2, 620 updates on 2 CPU cores).
"""

from configs import imagenet_resnet50
from resnet_jax.config import Config


def get_config() -> Config:
  config = imagenet_resnet50.get_config()
  config.num_epochs = 30
  config.model.name = "resnet18"
  config.data.name = "folder"
  config.data.eval_split = "val"
  config.data.train_crop = "random"
  config.data.train_resize = 256
  config.optim.warmup_epochs = 2
  config.optim.decay_epochs = (10, 20, 27)
  return config
