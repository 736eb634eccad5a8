"""ResNet-18 on Fashion-MNIST, one channel, resized to 96 pixels.

Command:
resnet-jax train --config=fashion_mnist_resnet18 --config.data.dir=DIR --workdir=RUN

The source is "Dive into Deep Learning" (d2l.ai), section "Residual Networks". It trains
for 10 epochs with batches of 256, plain SGD at 0.05 and no augmentation. It shows a
test accuracy of about 90 %. The images stay 28 x 28 in memory and are resized inside
the step.

The network is not trained with this package yet. It needs Fashion-MNIST as
`resnet-jax data prepare` or TFDS (array_record) has prepared it, 40 MB. Training takes
about 2 hours on 2 CPU cores or some minutes on a GPU. The times are estimates from the
measured speed of ResNet-50.
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
