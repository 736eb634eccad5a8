"""The paper's CIFAR-10 nets with the paper's recipe (He et al. 2015, section 4.2).

Command: python train.py --config=configs/cifar10_resnet20.py --config.data.dir=DIR
--workdir=RUN, or --config=configs/cifar10_resnet20.py:resnet56 for a sibling.

After the colon: resnet20, 32, 44, 56, 110 or 1202, or plain20 .. plain1202. Batch 128,
learning rate 0.1 divided by 10 at 32k and 48k of 64k updates, momentum 0.9, weight
decay 1e-4 on every parameter, shifts of up to 4 pixels and flips, option A shortcuts.
ResNet-110 and 1202 start with 400 updates at 0.01 (the paper: until the training
error is below 80 %, about 400 updates).

Test error in the paper's table 6, trained on 45k or 50k images: resnet20 8.75 %,
resnet32 7.51, resnet44 7.17, resnet56 6.97, resnet110 6.43, resnet1202 7.93. What
differs here: a mean and standard deviation per channel instead of a mean per pixel,
and updates are counted in epochs of 390 full batches.

Seen here: 55.9 % test top-1 after the first 600 updates of resnet20 (about 10 minutes
on 2 cores of a shared CPU, 2026-11-21). Not yet run to the end.
"""

from resnet_jax.config import Config, recipes, set_value

DEPTHS = (20, 32, 44, 56, 110, 1202)
NAMES = [f"{kind}{depth}" for kind in ("resnet", "plain") for depth in DEPTHS]


def get_config(name: str = "resnet20") -> Config:
  if name not in NAMES:
    raise ValueError(f"config {name!r} is unknown; choose from {', '.join(NAMES)}")
  config = recipes.cifar10()
  config.model.name = name
  # The deepest compile for minutes otherwise.
  config.model.scan = name.endswith(("110", "1202"))
  if name in ("resnet110", "resnet1202"):
    for path, value in recipes.WARMUP.items():
      set_value(config, path, value)
  return config
