"""ResNet-50 on ImageNet for 600 epochs, with the newer recipe of torchvision.

Command:
resnet-jax train --config=imagenet_resnet50_modern --config.data.dir=DIR --workdir=RUN

The source is the recipe of torchvision's IMAGENET1K_V2 weights (pytorch/vision#3995).
They have 80.86 % top-1 accuracy on images that are resized to 232 and cropped to 224.

The batch has 1024 images. The learning rate rises to 0.5 during 5 epochs and then
follows a cosine. Training images have 176 pixels. TrivialAugment, random erasing, and
mixup or cutmix change them. The labels are smoothed.

One part of torchvision's recipe is left out: repeated augmentation, which takes a
quarter of the images in each epoch, four times each.

torchvision updates its average of the weights every 32 updates, with a weight of
0.00109. This is its `--model-ema-decay=0.99998`, scaled by the batch. Here each update
changes the average, so that the same decay is 0.999966.

The network is not trained with this package yet. It needs ImageNet (1.28 million
images, 150 GB) and at least 23 hours of an H100, which computes 5,870 images/s of 224
pixels in bfloat16. The host must decode images at that rate too.
"""

from resnet_jax.config import AugmentConfig, Config, ModelConfig, OptimConfig, recipes


def get_config() -> Config:
  config = recipes.imagenet()
  config.num_epochs = 600
  config.batch_size = 1024
  config.model = ModelConfig(name="resnet50", zero_init_residual=True)
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
