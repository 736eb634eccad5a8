"""DeepLabv3 with a ResNet-50, for the class of each pixel, with torchvision's recipe.

Commands:
resnet-jax train --config=voc_deeplabv3_resnet50 --config.data.dir=VOC2012 --workdir=RUN
resnet-jax train --config=voc_deeplabv3_resnet50:scratch --config.data.dir=FOLDER

VOC2012 is the folder in VOCtrainval_11-May-2012.tar, and FOLDER has your own images and
masks, see docs/segmentation.md. The backbone starts from torchvision's weights for
ImageNet in timm's copy, which is downloaded once (pip install 'flax-resnet[hf]'). The
variant scratch starts from random weights, which need many more images. It is also what
`resnet-jax train --config.data.labels=mask --config.data.dir=FOLDER` trains.

The source is torchvision's references/segmentation, with the command of its README for
this network, for 8 GPUs: --lr 0.02 --dataset coco -b 4 --aux-loss.

  setting               torchvision           here
  images                COCO's, with the      VOC 2012, or your own
                        classes of VOC
  epochs, batch         30, 8 times 4         30, 32
  optimiser             SGD, momentum 0.9     the same
  learning rate         0.02                  the same, for 32 images
  auxiliary head        rate times 10, loss   the same
                        times 0.5
  schedule              poly, power 0.9       the same
  weight decay          1e-4 on everything    the same
  loss                  mean of the labelled  mean of those of each image, and then of
                        pixels of a GPU       the images
  batch norm            of all GPUs together  the same
  training images       short side resized    the same
                        to 0.5 to 2 times
                        520, crop 480, flip
  evaluation            short side 520, each  long side 693, padded to a square; a photo
                        image by itself       of 4:3 then has a short side of 520 too
  backbone              ImageNet, V1          the same

The network was not trained with this recipe yet. torchvision's has a mean IoU of 66.4 %
on its images. The time was not measured.
"""

from resnet_jax.config import Config
from resnet_jax.config.allowed import check_choice

VARIANTS = ("pretrained", "scratch")


def get_config(name: str = "pretrained") -> Config:
  check_choice("variant", name, VARIANTS)
  config = Config(num_epochs=30, batch_size=32, steps_per_call=1, log_every_steps=10)
  config.model.name = "deeplabv3_resnet50"
  config.init_from = "hf://timm/resnet50.tv_in1k"
  config.data.name = "folder"
  config.data.labels = "mask"
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.data.train_resize = 520
  config.data.image_size = 480
  config.data.eval_resize = 693
  config.data.eval_crop = 693
  config.augment.flip = True
  config.optim.learning_rate = 0.02
  config.optim.reference_batch_size = 32
  config.optim.learning_rate_multipliers = {"aux_head": 10.0}
  config.optim.decay_all = True
  config.optim.schedule = "poly"
  if name == "scratch":
    config.init_from = ""
  return config
