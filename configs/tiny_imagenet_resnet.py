"""ResNet-18 or 50 on Tiny-ImageNet, enlarged to 224 pixels or at its own 64.

Command:
resnet-jax train --config=tiny_imagenet_resnet --config.data.dir=tiny-imagenet-200
--workdir=RUN

Add the variant after a colon: --config=tiny_imagenet_resnet:resnet50.
  resnet18: ResNet-18 at 224 pixels, the default.
  resnet50: ResNet-50 at 224 pixels.
  resnet18_64: ResNet-18 at 64 pixels, with a 3x3 stem.

DIR, here tiny-imagenet-200, is the data set as it is downloaded. It has 200 classes of
500 training images of 64 pixels.

At 224 pixels, the images are resized to 256, cropped to 224 at random and flipped.
Tutorials do so to use ImageNet's architecture unchanged. The rest of the recipe is the
90-epoch recipe of `imagenet_resnet.py`, cut to 30 epochs. We know of no published
accuracy of this recipe.

At 64 pixels, three things differ: the stem, the crop and the weight decay, which is
5e-4. The crop shifts an image by up to 8 pixels and fills the rest with zeros. Recipes
for CIFAR shift images of 32 pixels by up to 4. Kim et al. 2020 (Puzzle Mix, arXiv
2009.06962) report 57.23 % for a pre-activation ResNet-18 that was trained for longer.

No variant has been trained with this package on all of the data yet. Each needs the
data set (240 MB), one GPU, and a host that decodes 3 million images. At 1,000 images/s,
this takes 50 minutes.

resnet18 was trained on 20 of the classes with 100 training images of each, and on
smaller images:
--config.data.train_resize=96 --config.data.image_size=84 --config.data.eval_resize=96
--config.data.eval_crop=84 --config.num_epochs=20 --config.batch_size=64
--config.optim.learning_rate=0.05 --config.steps_per_call=1. It reached 27.7 % top-1 and
68.1 % top-5 on the 1,000 validation images (2026-11-22, jax 0.10.2, 620 updates on
2 CPU cores).
"""

from resnet_jax.config import Config, ModelConfig, recipes
from resnet_jax.config.allowed import check_choice

VARIANTS = ("resnet18", "resnet50", "resnet18_64")


def get_config(name: str = "resnet18") -> Config:
  check_choice("variant", name, VARIANTS)
  config = recipes.imagenet()
  config.num_epochs = 30
  config.model = ModelConfig(name=name.removesuffix("_64"), zero_init_residual=True)
  config.data.name = "folder"
  config.data.eval_split = "val"
  config.data.train_crop = "random"
  config.data.train_resize = 256
  config.optim.reference_batch_size = 256
  config.optim.decay_all = False
  config.optim.warmup_epochs = 2
  config.optim.decay_epochs = (10, 20, 27)
  if name == "resnet18_64":
    config.model.stem = "cifar"
    config.data.train_resize = config.data.image_size = 64
    config.data.eval_resize = config.data.eval_crop = 64
    config.augment.padding = 8
    config.optim.weight_decay = 5e-4
  return config
