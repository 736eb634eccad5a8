"""ResNet-50 on ImageNet for 90 epochs (Goyal et al. 2017, section 5.1).

Command: python train.py --config=configs/imagenet_resnet50.py --config.data.dir=DIR
--workdir=RUN

DIR is where TFDS has `imagenet2012` as array_record; a folder with train/ and val/ goes
with --config.data.name=folder --config.data.eval_split=val. Learning rate 0.1 for each
256 images of a batch, 5 epochs of linear warmup from 0 (there from 0.1), divided by 10
at 30, 60 and 80; plain momentum, as torchvision's; weight decay 1e-4 on kernels, the
last batch norm of each block starts at 0, no label smoothing. Goyal et al. report 23.6
% top-1 error (1 crop, table 1); torchvision's weights of a like recipe have 76.13 %
top-1.

Not yet trained with this package.
"""

from resnet_jax.config import Config, ModelConfig, recipes


def get_config() -> Config:
  config = recipes.imagenet()
  config.model = ModelConfig(name="resnet50", zero_init_residual=True)
  config.optim.reference_batch_size = 256
  config.optim.decay_all = False
  config.optim.warmup_epochs = 5
  config.optim.decay_epochs = (30, 60, 80)
  return config
