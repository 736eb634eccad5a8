"""ResNet-50, trained on ImageNet and fine-tuned on a folder of photos at 224 pixels.

Commands:
resnet-jax train --config=finetune_photos --config.data.dir=PHOTOS --workdir=RUN
resnet-jax train --config=finetune_photos --config.data.dir=PHOTOS
--config.init_from=resnet18-f37072fd.pth --config.model.name=resnet18 --workdir=RUN
resnet-jax train --config=finetune_photos:scratch --config.data.dir=PHOTOS --workdir=RUN

PHOTOS has a folder for each class. The weights are timm's, from the Hugging Face hub.
They are downloaded once (pip install 'flax-resnet[hf]'). Mean, standard deviation,
resizing, crop and interpolation are those of the weights. The new head learns ten times
as fast as the rest. --config.optim.warmup=head trains it alone in the first epoch.

The variant scratch is ResNet-18 from random weights, for 30 epochs. It is also what
`resnet-jax train --config.data.dir=PHOTOS` trains without --config.

The recipe was tested on a tenth of Imagenette: 100 training and 40 validation photos of
each of 10 classes. ImageNet's weights were not at hand, so it started from a ResNet-20
for CIFAR-10, at 48 pixels (2026-11-27, jax 0.10.2, one seed, 310 updates in 105 s of
CPU time):
  69.0 % top-1 with --config.init_from=resnet20-12fca82f.th;
  34.5 % top-1 with :scratch and as many updates.
Both have --config.model.name=resnet20 --config.data.image_size=48
--config.data.eval_resize=54 --config.data.eval_crop=48 --config.num_epochs=10.

ResNet-50 at 224 pixels was not trained to the end. It needs the weights (100 MB). By
the measured time of a step, 10 epochs of 1,000 photos take about 25 minutes on 2 CPU
cores.
"""

from resnet_jax.config import Config
from resnet_jax.config.allowed import check_choice
from resnet_jax.config.preprocessing import OF_WEIGHTS

VARIANTS = ("pretrained", "scratch")


def get_config(name: str = "pretrained") -> Config:
  check_choice("variant", name, VARIANTS)
  config = Config(num_epochs=10, batch_size=32, steps_per_call=1, log_every_steps=10)
  config.model.name = "resnet50"
  config.init_from = "hf://timm/resnet50.a1_in1k"
  config.data.name = "folder"
  config.data.train_crop = "random_resized"
  config.data.min_area = 0.35
  config.data.image_size = 224
  # Mean, std, resize, crop and interpolation are those of the weights.
  for field, mark in OF_WEIGHTS.items():
    setattr(config.data, field, mark)
  config.augment.flip = True
  config.optim.learning_rate = 0.01
  config.optim.learning_rate_multipliers = {"head": 10.0}
  config.optim.nesterov = True
  config.optim.schedule = "cosine"
  config.optim.warmup_epochs = 1
  config.optim.label_smoothing = 0.1
  if name == "scratch":
    config.init_from = ""
    config.model.name = "resnet18"
    config.model.zero_init_residual = True
    config.num_epochs = 30
    config.optim.learning_rate = 0.05
    config.optim.learning_rate_multipliers = {}
    config.optim.weight_decay = 5e-4
  return config
