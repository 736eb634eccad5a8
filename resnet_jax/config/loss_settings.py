"""The settings of the loss.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses

from resnet_jax.config import allowed

# `DataConfig.labels` -> the losses for such labels; the first is the default.
LOSSES = {
  "class": ("softmax", "bce", "focal"),
  "classes": ("bce", "focal"),
  "numbers": ("mse", "mae", "huber"),
  "mask": ("softmax",),
  "boxes": ("focal",),
}


@dataclasses.dataclass(slots=True)
class LossConfig:
  """The loss in training. An evaluation reports the plain loss of the labels.

  The plain loss is the cross-entropy of one class, the binary cross-entropy of several,
  or the mean squared error of numbers.

  Attributes:
    name: for one class an image, "softmax" (cross-entropy), "bce" (binary cross-entropy
      of each class against the others, as in ResNet strikes back) or "focal" (Lin et
      al. 2017, equation 4). For several classes, "bce" or "focal". For numbers, "mse",
      "mae" or "huber", of numbers that are standardised. "" takes the first of these.
      Masks have "softmax" for each pixel, and boxes "focal" with the losses of the
      boxes, see `Segmentation` and `Detection`.
    focal_gamma: exponent of "focal"; 0 gives the cross-entropy.
    bce_threshold: with "bce" of one class, targets above it count as 1 and others as 0;
      0 leaves them as mixup and smoothing made them. timm's recipes have 0.2.
    class_weighting: "balanced" weights an image by N / (K n), where n is the number of
      training images of its class, N of all, and K the number of classes. If an image
      has several classes, the loss of a class is weighted by (N - n) / n where the
      image has it. "" does not.
    class_weights: a weight for each class, in their order, in place of
      `class_weighting`. The weights are not normalised.
    logit_adjustment: tau of Menon et al. 2021, equation 10: adds tau log(n / N) to the
      logits in training, so that rare classes are found as often as frequent ones; 0
      adds nothing, and 1 is the paper's value.
    class_counts: number of training images of each class, for "balanced" and
      `logit_adjustment`; () counts them.
    target_mean, target_std: for labels that are numbers, the network learns (number -
      mean) / std, with a mean and a std for each number; () computes them from the
      training labels.
  """

  name: str = allowed.choice(
    *("", "", "softmax", "bce", "focal", "mse", "mae", "huber"),
  )
  focal_gamma: float = allowed.at_least(2.0, 0)
  bce_threshold: float = allowed.setting(0.0, "in [0, 1)", lambda v: 0 <= v < 1)
  class_weighting: str = allowed.choice("", "", "balanced")
  class_weights: tuple[float, ...] = allowed.setting(
    (), "numbers >= 0, one for each class", lambda v: all(x >= 0 for x in v)
  )
  logit_adjustment: float = allowed.at_least(0.0, 0)
  class_counts: tuple[int, ...] = allowed.setting(
    (), "numbers > 0, one for each class", lambda v: all(x > 0 for x in v)
  )
  target_mean: tuple[float, ...] = ()
  target_std: tuple[float, ...] = allowed.setting(
    (), "numbers > 0, one for each number of a label", lambda v: all(x > 0 for x in v)
  )

  def needs_labels(self, labels: str) -> bool:
    """Whether a setting must be computed from the training labels.

    Args:
      labels: `DataConfig.labels`.
    """
    if labels == "numbers":
      return not (self.target_mean and self.target_std)
    is_balanced = self.class_weighting == "balanced" and not self.class_weights
    return not self.class_counts and (is_balanced or self.logit_adjustment > 0)
