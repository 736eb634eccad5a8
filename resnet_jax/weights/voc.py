"""The 21 classes of PASCAL VOC 2012, in the order of the logits of segmentation.

torchvision's weights for semantic segmentation have these classes and these names.
"""

from resnet_jax.data.voc_classes import VOC_CLASSES


def class_names() -> tuple[str, ...]:
  """Returns the names, with "__background__" first."""
  return VOC_CLASSES
