"""The settings of knowledge distillation.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses

from resnet_jax.config import allowed


@dataclasses.dataclass(slots=True)
class DistillConfig:
  """Knowledge distillation: a trained network, the teacher, gives the targets.

  The loss of an image is weight T^2 KL(p || q) + (1 - weight) L. p and q are the
  softmax of the teacher's and of the network's logits, each divided by T; L is the loss
  of the label (Hinton et al. 2015, section 2). The teacher sees the same augmented and
  mixed image as the network (Beyer et al. 2022). An evaluation does not use it.

  Attributes:
    teacher: the teacher. It is a run (RUN or RUN/checkpoints/STEP), or a file or name
      that `weights.load` reads, such as resnet20_cifar10; "" trains without one.
    model: architecture of the teacher, such as resnet50, if its file does not name it.
    temperature: T. Beyer et al. take 1 for ImageNet, and try 1, 2, 5 and 10 for small
      data sets.
    weight: share of the teacher in the loss. At 1, the labels are not used, as in Beyer
      et al.
  """

  teacher: str = ""
  model: str = ""
  temperature: float = allowed.positive(1.0)
  weight: float = allowed.setting(1.0, "in (0, 1]", lambda v: 0 < v <= 1)
