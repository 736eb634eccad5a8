"""RetinaNet with ResNet-50 on COCO for 26 epochs, as in torchvision's references.

Command:
resnet-jax train --config=coco_retinanet_resnet50 --config.data.dir=COCO --workdir=RUN

COCO is a folder with annotations/instances_train2017.json, instances_val2017.json and
the images in train2017/ and val2017/: a split may have a year after its name. The
backbone starts from torchvision's weights of ImageNet. They are downloaded once (pip
install 'flax-resnet[hf]'). --config.init_from also takes the file
resnet50-0676ba61.pth.

The values are those of torchvision's program (github.com/pytorch/vision,
references/detection, retinanet_resnet50_fpn):

  setting               torchvision              here
  batch                 8 GPUs, 2 images each    16 images
  image size            short side 800, long     whole image in a square of 800,
                        side at most 1333        the rest grey; long side 800
  images in a batch     of similar shape         of any shape
  resizing              bilinear                 bilinear, antialiased
  augmentation          mirrored                 the same
  images without boxes  left out in training     the same
  classes               91, with gaps            80
  optimiser             SGD, momentum 0.9        the same
  learning rate         0.01 for 16 images       the same
  schedule              a tenth after 16 and     the same
                        22 of 26 epochs
  warmup                1000 updates from        the same
                        a thousandth
  weight decay          1e-4, all that is        the same
                        trained
  frozen                stem and first stage     the same
  norm                  frozen batch norm        the same, epsilon 1e-5
  losses                focal and L1             the same
  detections            100 of 300 in an image   100 in an image
  gradient              not clipped              the same
  precision             float32                  bfloat16 on GPU and TPU

An object is smaller in a square of 800 pixels than with torchvision's sizes: a photo of
640x480 pixels becomes 800x600 instead of 1067x800, so that a lower AP is to be
expected. --config.data.image_size=1088 comes close to torchvision's sizes.

torchvision reports an AP of 36.4 % on the 5,000 images of val2017 for its weights. The
network was not trained with this package yet: it needs COCO (118,000 images, 19 GB) and
a GPU. The time was not measured.

The variant "scratch" starts from random weights. As in torchvision, its backbone then
has plain batch norm, and nothing is frozen.
"""

from resnet_jax.config import Config
from resnet_jax.config.allowed import check_choice
from resnet_jax.config.preprocessing import Preprocessing

VARIANTS = ("pretrained", "scratch")


def get_config(name: str = "pretrained") -> Config:
  check_choice("variant", name, VARIANTS)
  config = Config(num_epochs=26, batch_size=16, log_every_steps=100)
  config.steps_per_call = 1
  config.eval_every_epochs = 1
  config.init_from = "hf://timm/resnet50.tv_in1k"
  config.freeze = ("stem", "stage1")
  config.model.name = "retinanet_resnet50_fpn"
  config.model.norm = "frozen"
  config.data.name = "folder"
  config.data.labels = "boxes"
  config.data.image_size = 800
  config.data.mean, config.data.std = Preprocessing().mean, Preprocessing().std
  config.augment.flip = True
  config.optim.learning_rate = 0.01
  config.optim.decay_all = True
  config.optim.decay_epochs = (16, 22)
  config.optim.warmup_steps = 1000
  config.optim.warmup_learning_rate = 1e-5
  if name == "scratch":
    config.init_from, config.freeze, config.model.norm = "", (), "batch"
  return config
