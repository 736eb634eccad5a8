"""ResNet-50 on ImageNet for 600 epochs, torchvision's newer recipe.

Command: python train.py --config=configs/imagenet_resnet50_modern.py
--config.data.dir=DIR --workdir=RUN

Source: torchvision's IMAGENET1K_V2 weights (pytorch/vision#3995), 80.86 % top-1 at
evaluation size 232/224. Batch 1024, learning rate 0.5, 5 epochs of warmup, cosine;
TrivialAugment, random erasing, mixup or cutmix, label smoothing; trained at 176 pixels.
Left out: repeated augmentation (each image four times an epoch, a quarter of the
images). torchvision averages every 32 updates with weight 0.00109 (its
`--model-ema-decay=0.99998` scaled by the batch), which is 0.999966 an update.

Not yet trained with this package.
"""

from configs import imagenet_resnet50
from resnet_jax.config import AugmentConfig, Config, OptimConfig


def get_config() -> Config:
  config = imagenet_resnet50.get_config()
  config.num_epochs = 600
  config.batch_size = 1024
  config.data.image_size = 176
  config.data.eval_resize = 232
  config.augment = AugmentConfig(
    flip=True, policy="trivial", erasing=0.1, mixup=0.2, cutmix=1.0
  )
  config.optim = OptimConfig(
    learning_rate=0.5,
    reference_batch_size=1024,
    weight_decay=2e-5,
    schedule="cosine",
    warmup_epochs=5,
    warmup_learning_rate=0.005,
    label_smoothing=0.1,
    ema_decay=0.999966,
  )
  return config
