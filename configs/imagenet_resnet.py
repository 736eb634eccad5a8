"""ResNet-18, 34, 50, 101 or 152 on ImageNet for 90 epochs; the default is 50.

Commands:
resnet-jax train --config=imagenet_resnet --config.data.dir=DIR --workdir=RUN
resnet-jax train --config=imagenet_resnet:resnet18 --config.data.dir=DIR --workdir=RUN

The variants are resnet18, resnet34, resnet50, resnet101 and resnet152. DIR is the
folder in which TFDS has prepared `imagenet2012` as array_record. For a folder with
train/ and val/, add --config.data.name=folder --config.data.eval_split=val.

The source of the recipe is Goyal et al. 2017, section 5.1. The learning rate is 0.1 for
each 256 images of a batch. It rises linearly from 0 during 5 epochs (Goyal et al. start
at 0.1). It is divided by 10 after 30, 60 and 80 epochs. The momentum is the plain one,
as in torchvision. The weight decay of 1e-4 acts on kernels only. The last batch norm of
each block starts at 0. The labels are not smoothed.

Goyal et al. report 23.6 % top-1 error for ResNet-50 (one crop, table 1). torchvision's
weights (IMAGENET1K_V1) come from a similar recipe. They have these top-1 accuracies
with one crop: resnet18 69.76 %, resnet34 73.31 %, resnet50 76.13 %, resnet101 77.37 %,
resnet152 78.31 %.

None of the five is trained to the end with this package yet. They need ImageNet
(1.28 million images, 150 GB) and, for ResNet-50, at least 5.5 hours of an H100, which
computes 5,870 images/s in bfloat16. ResNet-18 takes about half of that, and ResNet-152
almost three times as long. The host must decode images at that rate too.
"""

from resnet_jax.config import Config, ModelConfig, recipes
from resnet_jax.config.allowed import check_choice

VARIANTS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def get_config(name: str = "resnet50") -> Config:
  check_choice("variant", name, VARIANTS)
  config = recipes.imagenet()
  config.model = ModelConfig(name=name, zero_init_residual=True)
  config.optim.reference_batch_size = 256
  config.optim.decay_all = False
  config.optim.warmup_epochs = 5
  config.optim.decay_epochs = (30, 60, 80)
  return config
