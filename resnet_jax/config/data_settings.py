"""The settings of the images and of their augmentation.

No postponed annotations here: `validation.py` and the command line read the types.
"""

import dataclasses

from resnet_jax.config import allowed

# Values of `DataConfig.name` that only say how to read files; `dir` names the data set.
KINDS_OF_FILES = "folder", "parquet", "webdataset"
# Values of `DataConfig.labels` for labels that belong to places in the image.
DENSE_LABELS = "mask", "boxes"


@dataclasses.dataclass(slots=True)
class DataConfig:
  """The images.

  Attributes:
    name: data set: "digits" (included), "synthetic" (noise with one pattern per class),
      "folder" (image files), "parquet" (Hugging Face), "webdataset" (tar files),
      "cifar10" or "cifar100" (official archives), or the name of a TFDS data set that
      was prepared as array_record. If `dir` has parquet files instead, these are read.
    factory: import path of your own data set, "package.module:function". The function
      takes this `DataConfig` and the name of a split. It returns an `ImageSource` or an
      `ImageArrays`. `name` is then unused.
    dir: where the data is. For TFDS, its data directory; "" is ~/tensorflow_datasets.
      For "folder", a directory with one folder per class, with or without train/ and
      val/ above the classes; or Tiny-ImageNet as downloaded; or a .csv file of
      path,label. For CIFAR, the archive, packed or not, or the folder that holds it.
      For "parquet", a file, a folder with files such as train-00000-of-00002.parquet,
      or hf://datasets/owner/name[@revision][/folder]. For "webdataset", a folder with
      files such as train-000000.tar.
    train_split: training split. For TFDS, in its syntax, such as "train[:45000]". For
      "folder", the name of the split's folder. The included sets have "train" and
      "test".
    eval_split: evaluation split, written like train_split; "" takes the validation
      split if the data set has one, and else the test split.
    val_share: fraction of each class of a "folder" without splits that is kept for
      evaluation.
    mean, std: normalisation. Pixels are scaled to [0, 1]; then `mean` is subtracted,
      and the result is divided by `std`. One value, or one per channel. The default
      scales to [-1, 1]. An empty value (--config.data.mean=) is replaced by the value
      of the weights in `init_from`, or by ImageNet's if `init_from` is empty.
    labels: labels of an image. "class" is one class. "classes" is any number of classes
      (multi-label): a .csv file has them in one cell, such as cat;outdoor. "numbers" is
      one or several numbers to predict (regression), such as 0.5;12. Your own data set
      gives bool [K] or float [K] for each image. "mask" is a class for each pixel
      (segmentation). "boxes" are objects with a class and a box (detection).
      `docs/segmentation.md` and `docs/detection.md` describe the folders of both.
    image_column, label_column: names of the columns of "parquet" with the images and
      the labels. For "webdataset", the suffixes of these files, such as jpg and cls; or
      the key of the label in .json files. "" finds the usual names.
    sampling: "all" takes each training image once in an epoch. "balanced" draws a class
      at random for each place of a batch, and then one of its images.
    repeats: number of times that a batch has each of its training images, with another
      augmentation each time (repeated augmentation: Hoffer et al. 2020; Berman et al.
      2019, section 3.2). An epoch then has so many times fewer different images.
    train_crop: crop of training images that are decoded while training runs.
      "random_resized" takes a part of random size and shape, and resizes it. "random"
      takes a random square of the resized image. "center" takes the middle of the
      resized image, as evaluation does. "folder" and large TFDS sets need one of them.
      Without a crop, a small TFDS set is decoded once, before training.
    min_area: smallest fraction of the image area that "random_resized" takes.
    train_resize: length in pixels to which the short side of training images is resized
      before the "random" or "center" crop; 0 does not resize.
    image_size: side length of the training crop, or of "synthetic" images, in pixels.
    eval_resize: length in pixels to which evaluation resizes the short side of images;
      0 does not resize; -1 takes the value of the weights, as an empty `mean` does.
    eval_crop: side length in pixels of the square that evaluation cuts out of the
      middle after resizing; 0 does not crop; -1 takes the value of the weights, as an
      empty `mean` does.
    interpolation: "bilinear" or "bicubic", both antialiased; "" takes the value of the
      weights, as an empty `mean` does. The parts that "random_resized" takes are always
      resized bilinearly, without antialiasing.
    channel_order: "rgb", or "bgr" for weights that expect blue first. `mean` and `std`
      are given in this order. "" takes the order of the weights in `init_from`.
    channels: number of channels that images are decoded to. 3 is RGB: grey is repeated
      and transparency dropped. 1 is grey: colour becomes luma. For any other number,
      each file must have exactly so many, such as an array [H, W, C] in an .npy file or
      a TIFF with several bands. It has no effect on images that are in memory.
    max_value: the value that counts as 1 when pixels are scaled to [0, 1], in files
      with more than 8 bits or with floats; 4095 for a 12-bit camera. A higher value or
      a negative one is an error, and the images stay exact to 16 bits. 0 takes the
      highest value of the file's type, such as 65535, and rounds to 8 bits.
    num_examples: number of images of "synthetic" in each of its two splits.
    on_error: what to do with an unreadable image. "raise" ends the run with an error
      that names the image. "skip" counts it; training takes the next image instead, and
      evaluation leaves it out.
    max_skip_share: fraction of skipped images above which "skip" ends the run too.
    max_pixels: largest number of pixels of an image; a larger image is unreadable.
    num_threads: number of threads that decode images; 0 is one per core.
    num_workers: number of processes for these threads; 0 is enough below 16 cores.
  """

  name: str = "digits"
  factory: str = allowed.factory()
  dir: str = allowed.changeable("")
  train_split: str = "train"
  eval_split: str = ""
  val_share: float = allowed.setting(0.1, "in (0, 1)", lambda v: 0 < v < 1)
  mean: tuple[float, ...] = allowed.setting(
    (0.5,),
    "in [0, 1] for each channel, as pixels are scaled to [0, 1]",
    lambda v: not v or (min(v) >= 0 and max(v) <= 1),
  )
  std: tuple[float, ...] = allowed.setting(
    (0.5,),
    "in (0, 1] for each channel, as pixels are scaled to [0, 1]",
    lambda v: not v or (min(v) > 0 and max(v) <= 1),
  )
  labels: str = allowed.choice(*("class", "class", "classes", "numbers", *DENSE_LABELS))
  image_column: str = ""
  label_column: str = ""
  sampling: str = allowed.choice("all", "all", "balanced")
  repeats: int = allowed.positive(1)
  train_crop: str = allowed.choice("", "", "random_resized", "random", "center")
  min_area: float = allowed.setting(0.08, "in (0, 1]", lambda v: 0 < v <= 1)
  train_resize: int = allowed.pixels(0, 0)
  image_size: int = allowed.pixels(32, 1)
  eval_resize: int = allowed.pixels(0, -1)
  eval_crop: int = allowed.pixels(0, -1)
  interpolation: str = allowed.choice("bilinear", "bilinear", "bicubic", "")
  channel_order: str = allowed.choice("rgb", "rgb", "bgr", "")
  channels: int = allowed.between(3, 1, 64)
  max_value: int = allowed.between(0, 0, 2**32 - 1)
  num_examples: int = allowed.positive(1024)
  on_error: str = allowed.choice("raise", "raise", "skip", may_change=True)
  max_skip_share: float = allowed.setting(
    0.01, "in (0, 1]", lambda v: 0 < v <= 1, may_change=True
  )
  # Pillow itself refuses more.
  max_pixels: int = allowed.between(100_000_000, 1, 178_000_000)
  num_threads: int = allowed.between(0, 0, 1024, may_change=True)
  num_workers: int = allowed.between(0, 0, 1024, may_change=True)


@dataclasses.dataclass(slots=True)
class AugmentConfig:
  """Random changes to training images.

  Attributes:
    padding: largest random shift along each axis, in pixels (zero-pad, then crop).
    flip: mirror a random half of the images left to right.
    policy: "trivial" (TrivialAugment), "rand" (RandAugment) or "". It needs
      `data.train_crop`, as it runs on the host, and 8-bit images of 1 or 3 channels.
    magnitude: strength of RandAugment.
    brightness, contrast, saturation: largest relative change of each.
    hue: largest change of the hue, as a fraction of a full turn.
    erasing: probability of erasing a random rectangle of an image.
    mixup, cutmix: alpha of mixup and of CutMix; 0 turns it off. If both are on, each
      batch gets one of them at random.
    image_factory: import path of your own augmentation of single images on the host,
      "package.module:function". The function takes this `AugmentConfig` and returns a
      function (image [H, W, C], `np.random.Generator`) -> image. The image is uint8, or
      uint16 if `data.max_value` is set. The function runs after the crop, and needs
      `data.train_crop`.
    batch_factory: import path of your own augmentation of batches in the compiled step,
      "package.module:function". The function takes this `AugmentConfig` and returns a
      function (key, images [B, H, W, C]) -> images. They are uint8, or float32 in [0,
      255] if `data.max_value` is set. The function runs before the others.
    progressive_sizes: progressive resizing: the run has one equal part for each size,
      in this order. The compiled step resizes the short side of the images to this
      number of pixels, antialiased and bilinear, before any other change. The last size
      must be at most the size of the images. Evaluation does not change;
      `precise_bn_batches` has the last size. () trains on the images as they are.
  """

  padding: int = allowed.pixels(0, 0)
  flip: bool = False
  policy: str = allowed.choice("", "", "trivial", "rand")
  magnitude: int = allowed.between(9, 0, 30)
  brightness: float = allowed.between(0.0, 0, 2)
  contrast: float = allowed.between(0.0, 0, 2)
  saturation: float = allowed.between(0.0, 0, 2)
  hue: float = allowed.between(0.0, 0, 0.5)
  erasing: float = allowed.between(0.0, 0, 1)
  mixup: float = allowed.between(0.0, 0, 100)
  cutmix: float = allowed.between(0.0, 0, 100)
  image_factory: str = allowed.factory()
  batch_factory: str = allowed.factory()
  progressive_sizes: tuple[int, ...] = allowed.increasing((), "(128, 160, 224)")
