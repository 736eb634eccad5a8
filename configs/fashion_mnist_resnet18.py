"""ResNet-18 on Fashion-MNIST resized to 96 pixels, one channel.

Command: python train.py --config=configs/fashion_mnist_resnet18.py
--config.data.dir=DIR --workdir=RUN

Source: "Dive into Deep Learning" (d2l.ai), section "Residual Networks": batch 256,
plain SGD at 0.05, 10 epochs, no augmentation; it shows a test accuracy of about 0.9.
The images stay 28 x 28 in memory and are resized inside the step.

Not yet trained with this package.
"""

from resnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig


def get_config() -> Config:
  return Config(
    num_epochs=10,
    batch_size=256,
    model=ModelConfig(name="resnet18"),
    data=DataConfig(
      name="fashion_mnist",
      mean=(0.0,),
      std=(1.0,),
      train_resize=96,
      eval_resize=96,
    ),
    optim=OptimConfig(learning_rate=0.05, momentum=0.0, weight_decay=0.0),
  )
