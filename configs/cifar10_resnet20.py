"""The CIFAR-10 networks of the ResNet paper, with and without shortcuts.

Commands:
resnet-jax train --config=cifar10_resnet20 --config.data.dir=DIR --workdir=RUN
resnet-jax train --config=cifar10_resnet20:resnet56 --config.data.dir=DIR --workdir=RUN

The variants are resnet20, 32, 44, 56, 110 and 1202, and plain20 to plain1202 without
shortcuts. The default is resnet20.

The source of the recipe is He et al. 2015, section 4.2. The batch has 128 images. The
learning rate is 0.1, divided by 10 at 32k and 48k of 64k updates. The momentum is 0.9.
The weight decay of 1e-4 acts on every parameter. The images are shifted by up to 4
pixels and flipped. The shortcuts are those of option A. ResNet-110 and 1202 start with
400 updates at 0.01. The paper does so until the training error is below 80 %, for about
400 updates.

Two things differ from the paper. The images are normalised by a mean and a standard
deviation of each channel, instead of a mean of each pixel. The updates are counted in
epochs of 390 full batches.

Table 6 of the paper gives these test errors, of training on 45k or 50k images:
resnet20 8.75 %, resnet32 7.51 %, resnet44 7.17 %, resnet56 6.97 %, resnet110 6.43 %,
resnet1202 7.93 %.

These test top-1 accuracies were measured at the last update, on 2026-11-26:
  resnet20, seed 0: 91.51 %, in float32 on 2 cores of a shared CPU in 5.4 hours;
  resnet20, seeds 1 and 2: 91.57 and 91.76 %, in bfloat16, most of it on an H100;
  resnet56, seed 0: 92.71 %, in bfloat16, most of it on an H100.
benchmarks/results/cifar10 has all their metrics. At the speed of those runs an H100
takes 4 to 8 minutes for resnet20 and 8 to 14 minutes for resnet56.

The other variants were not trained to the end yet. They need CIFAR-10 and one GPU: by
their depths about 30 minutes of an H100 for the nets of 110 layers, 5 hours for those
of 1202 layers, and less than 14 minutes for the others.
"""

from resnet_jax.config import Config, recipes, set_value
from resnet_jax.config.allowed import check_choice

DEPTHS = (20, 32, 44, 56, 110, 1202)
VARIANTS = tuple(f"{kind}{depth}" for kind in ("resnet", "plain") for depth in DEPTHS)


def get_config(name: str = "resnet20") -> Config:
  check_choice("variant", name, VARIANTS)
  config = recipes.cifar10()
  config.model.name = name
  # The deepest compile for minutes otherwise.
  config.model.scan = name.endswith(("110", "1202"))
  if name in ("resnet110", "resnet1202"):
    for path, value in recipes.WARMUP.items():
      set_value(config, path, value)
  return config
