"""The settings of the loss of a classification.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses

from resnet_jax.config import allowed


@dataclasses.dataclass(slots=True)
class LossConfig:
  """The loss in training. An evaluation reports the plain cross-entropy.

  Attributes:
    name: "softmax" (cross-entropy); "bce" (binary cross-entropy of each class against
      the others, as in ResNet strikes back); or "focal" (Lin et al. 2017, equation 4).
    focal_gamma: exponent of "focal"; 0 gives the cross-entropy.
    bce_threshold: with "bce", targets above it count as 1 and others as 0; 0 leaves
      them as mixup and smoothing made them. timm's recipes have 0.2.
    class_weighting: "balanced" weights an image by N / (K n), where n is the number of
      training images of its class, N of all, and K the number of classes; "" does not.
    class_weights: a weight for the images of each class, in their order, in place of
      `class_weighting`. The weights are not normalised.
    logit_adjustment: tau of Menon et al. 2021, equation 10: adds tau log(n / N) to the
      logits in training, so that rare classes are found as often as frequent ones; 0
      adds nothing, and 1 is the paper's value.
    class_counts: number of training images of each class, for "balanced" and
      `logit_adjustment`; () counts them.
  """

  name: str = allowed.choice("softmax", "softmax", "bce", "focal")
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

  @property
  def needs_counts(self) -> bool:
    """Whether the training images of each class must be counted."""
    is_used = self.class_weighting == "balanced" or self.logit_adjustment > 0
    return is_used and not self.class_counts
