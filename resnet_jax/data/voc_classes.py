"""The names of the 21 classes of PASCAL VOC 2012, by their numbers in its masks."""

VOC_CLASSES = (
  *("__background__", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
  *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
  *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
