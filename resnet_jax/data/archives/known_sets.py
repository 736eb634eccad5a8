"""The data sets that `resnet-jax data prepare` knows, and their published files.

The SHA-256 sums are those of torchvision (`torchvision.prototype.datasets`), TensorFlow
Datasets (`checksums.tsv` of each set) and Keras (`keras.datasets`). Those of MNIST's
unpacked files belong to the content of the packed files. Of Tiny-ImageNet neither its
authors nor these libraries publish a sum; many projects that use it state this one.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from resnet_jax.data.archives import (
  cifar_tar,
  idx,
  imagenet_tars,
  stl10,
  svhn,
  tiny_imagenet_zip,
)
from resnet_jax.data.archives.rows import Read


class KnownSet(NamedTuple):
  """A data set.

  Attributes:
    url: where its files are published.
    splits: number of images of each split.
    parts: for each part, the names of the files that may hold it, and their SHA-256
      sums, "" if none is published. A split needs the part of its name if there is one,
      and all parts that have no split's name.
    read: reads a split.
    train: flags of `resnet-jax train` that suit the set, without `--config.data.dir`.
    optional: splits that are left out if their part is missing.
    left_out: images that are never read, for a message; "" is none.
  """

  url: str
  splits: Mapping[str, int]
  parts: Mapping[str, Mapping[str, str]]
  read: Read
  train: str
  optional: Collection[str] = ()
  left_out: str = ""


_IDX_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist"
_IDX_SPLITS = {"train": 60_000, "test": 10_000}


def _idx_parts(sums: Mapping[str, str]) -> dict[str, dict[str, str]]:
  """Returns the parts of a set in four files, given the sums by names of files."""
  return {
    f"{split}-{kind}": {name: sums.get(name, "") for name in (f"{file}.gz", file)}
    for split, prefix in (("train", "train"), ("test", "t10k"))
    for kind, suffix in (("images", "idx3"), ("labels", "idx1"))
    for file in (f"{prefix}-{kind}-{suffix}-ubyte",)
  }


KNOWN_SETS = {
  "cifar10": KnownSet(
    url="https://www.cs.toronto.edu/~kriz/cifar.html",
    splits={"train": 50_000, "test": 10_000},
    parts={
      "archive": {
        "cifar-10-python.tar.gz": (
          "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
        ),
        "cifar-10-binary.tar.gz": (
          "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        ),
      }
    },
    read=cifar_tar.reader("cifar10"),
    train="--config=cifar10_resnet20",
  ),
  "cifar100": KnownSet(
    url="https://www.cs.toronto.edu/~kriz/cifar.html",
    splits={"train": 50_000, "test": 10_000},
    parts={
      "archive": {
        "cifar-100-python.tar.gz": (
          "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
        ),
        "cifar-100-binary.tar.gz": (
          "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
        ),
      }
    },
    read=cifar_tar.reader("cifar100"),
    train="--config=cifar10_resnet20 --config.data.name=cifar100",
  ),
  "mnist": KnownSet(
    url=_IDX_URL,
    splits=_IDX_SPLITS,
    parts=_idx_parts(
      {
        "train-images-idx3-ubyte.gz": (
          "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
          "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": (
          "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
          "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
        "train-images-idx3-ubyte": (
          "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
          "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
          "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
          "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
      }
    ),
    read=idx.reader(idx.DIGITS),
    train="--config=fashion_mnist_resnet18 --config.data.name=mnist",
  ),
  "fashion_mnist": KnownSet(
    url=_FASHION_URL,
    splits=_IDX_SPLITS,
    parts=_idx_parts(
      {
        "train-images-idx3-ubyte.gz": (
          "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte.gz": (
          "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte.gz": (
          "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte.gz": (
          "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
      }
    ),
    read=idx.reader(idx.CLOTHES),
    train="--config=fashion_mnist_resnet18",
  ),
  "svhn": KnownSet(
    url="http://ufldl.stanford.edu/housenumbers/",
    splits={"train": 73_257, "test": 26_032, "extra": 531_131},
    parts={
      "train": {
        "train_32x32.mat": (
          "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"
        )
      },
      "test": {
        "test_32x32.mat": (
          "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"
        )
      },
      "extra": {
        "extra_32x32.mat": (
          "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"
        )
      },
    },
    read=svhn.read,
    train=(
      "--config=cifar10_resnet20 --config.data.name=svhn --config.augment.flip=False"
    ),
    optional=("extra",),
  ),
  "stl10": KnownSet(
    url="https://cs.stanford.edu/~acoates/stl10/",
    splits={"train": 5_000, "test": 8_000},
    parts={
      "archive": {
        "stl10_binary.tar.gz": (
          "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"
        )
      }
    },
    read=stl10.read,
    train=(
      "--config=imagenette_resnet18 --config.data.name=stl10 "
      "--config.data.image_size=96 --config.data.eval_resize=96 "
      "--config.data.eval_crop=96"
    ),
    left_out="the 100,000 images without labels",
  ),
  "tiny_imagenet": KnownSet(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    splits={"train": 100_000, "val": 10_000},
    parts={
      "archive": {
        "tiny-imagenet-200.zip": (
          "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
        )
      }
    },
    read=tiny_imagenet_zip.read,
    train="--config=tiny_imagenet_resnet --config.data.name=tiny_imagenet",
    left_out="the 10,000 test images, which have no labels",
  ),
  "imagenet": KnownSet(
    url="https://image-net.org/download-images",
    splits={"train": 1_281_167, "validation": 50_000},
    parts={
      "train": {
        "ILSVRC2012_img_train.tar": (
          "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb"
        )
      },
      "validation": {
        "ILSVRC2012_img_val.tar": (
          "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0"
        )
      },
      "devkit": {
        "ILSVRC2012_devkit_t12.tar.gz": (
          "b59243268c0d266621fd587d2018f69e906fb22875aca0e295b48cafaa927953"
        )
      },
    },
    read=imagenet_tars.read,
    train="--config=imagenet_resnet",
    optional=("train",),
  ),
}
