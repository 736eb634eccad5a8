"""The 21 classes of PASCAL VOC 2012, in the order of the logits of segmentation.

torchvision's weights for semantic segmentation have these classes and these names.
"""

_CLASSES = (
  *("__background__", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
  *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
  *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def class_names() -> tuple[str, ...]:
  """Returns the names, with "__background__" first."""
  return _CLASSES
