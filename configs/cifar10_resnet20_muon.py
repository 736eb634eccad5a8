"""ResNet-20 on CIFAR-10 with Muon, in a quarter of the updates of the paper.

Command:
resnet-jax train --config=cifar10_resnet20_muon --config.data.dir=DIR --workdir=RUN

The network, the images and their augmentation are those of cifar10_resnet20, which has
91.51 to 91.76 % test top-1. The optimiser is Muon for all convolutions and Adam for the
rest. There is no published recipe for this network. The nearest one is airbench94_muon
(github.com/KellerJordan/cifar10-airbench), a wider network that reaches 94 % in 8
epochs:

  setting               airbench94_muon      here
  network               3 groups, whitening  ResNet-20
  batch, length         2000, 8 epochs       128, 41 epochs (16,000 updates)
  convolutions          Muon                 Muon, the first one included
  momentum              0.6, Nesterov        0.95, Nesterov, as in Muon's README
  size of an update     kernels have a       0.2 root mean square (Liu et al. 2025,
                        constant norm        section 2.2), times the learning rate
  learning rate         0.24, falls to 0     0.005, cosine to 0, warmup of 500 updates
  other parameters      SGD, own rates       Adam, the same rate
  weight decay          none on kernels      0.1 on kernels, decoupled
  label smoothing       0.2                  none
  augmentation          flips, shifts by 2   flips, shifts by 4

After 2,000 updates (seed 0, 2 CPU cores, 2026-11-27) the test top-1 is 78.7 %;
cifar10_resnet20, with SGD at its constant first rate, has 72.8 %. The learning rate and
the weight decay are not tuned: `resnet-jax lr-find` suggests a rate. The network is not
trained to the end yet. At the speed of cifar10_resnet20, the
updates take 1 to 2 minutes of an H100; Muon's share is not measured.
"""

from resnet_jax.config import Config, OptimConfig, recipes


def get_config() -> Config:
  config = recipes.cifar10()
  config.num_steps = 16_000
  config.eval_every_steps = 1000
  config.model.name = "resnet20"
  config.optim = OptimConfig(
    name="muon",
    learning_rate=5e-3,
    momentum=0.95,
    nesterov=True,
    weight_decay=0.1,
    schedule="cosine",
    warmup_steps=500,
  )
  return config
