"""Warnings about image sizes that do not suit a network."""

from flax import linen as nn

from resnet_jax.models.resnet import ResNet

# A smaller last feature map is mostly border, and Grad-CAM has nothing to show.
_SMALLEST_MAP = 3
# The CIFAR stem keeps all pixels, so larger images take long.
_LARGEST_FOR_CIFAR = 96
_LARGEST_RATIO = 1.5
_SIZES = (
  "config.data.image_size and eval_crop (train_resize and eval_resize for a data set "
  "in memory)"
)


def size_warnings(
  model: nn.Module, train_shape: tuple[int, ...], eval_shape: tuple[int, ...]
) -> list[str]:
  """Returns one line per problem with the sizes of the images.

  Args:
    model: the network. Strides are known only for a `ResNet`.
    train_shape: (H, W, C) of the training images.
    eval_shape: (H, W, C) of the images for evaluation.
  """
  sizes = sorted((*train_shape[:2], *eval_shape[:2]))
  small, large = sizes[0], sizes[-1]
  found = []
  if isinstance(model, ResNet):
    stem, stride = model.stage_strides[0], model.stage_strides[-1]
    side = -(-small // stride)
    # Networks for CIFAR have a stride of 4. They suit the smallest images.
    if side < _SMALLEST_MAP and stride > 4:
      other = "model.stem=cifar" if stem > 1 else "model.name=resnet20"
      found.append(
        f"the last feature map is {side}x{side} for images of {small} pixels a side; "
        f"set config.{other} for small images, or larger images with {_SIZES}"
      )
    if stem == 1 and large > _LARGEST_FOR_CIFAR:
      found.append(
        f"the stem for small images keeps all pixels of images of {large} pixels a "
        f"side, which takes {(large / 32) ** 2:.0f} times the time of 32 pixels; set "
        f"config.model.stem=imagenet, or smaller images with {_SIZES}"
      )
  train, evaluation = min(train_shape[:2]), min(eval_shape[:2])
  if max(train, evaluation) > _LARGEST_RATIO * min(train, evaluation):
    found.append(
      f"training images have {train} pixels a side and evaluation images {evaluation}, "
      f"so that the same object has another size; set {_SIZES} to similar sizes"
    )
  return found
