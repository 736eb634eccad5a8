"""On-device mixing of images and targets within a batch: mixup and cutmix.

Shapes: B batch, H height, W width, C channels, K classes. Targets are class
probabilities.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from resnet_jax.config.schema import AugmentConfig
from resnet_jax.data.batches.color_and_erasing import box_mask
from resnet_jax.runtime.arrays import Array, Float, Float32, Num, PRNGKeyArray

# (key, images, targets) -> images and targets, mixed.
Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def _beta(key: PRNGKeyArray, alpha: float) -> Float32[Array, ""]:
  """Draws from Beta(alpha, alpha)."""
  # jax.random.beta draws the two gammas separately and takes twice as long to compile.
  first, second = jax.random.loggamma(key, alpha, (2,))
  return jax.nn.sigmoid(first - second)


def _interpolate(
  batch: Float[Array, "b ..."], weight: Float[Array, ""]
) -> Float[Array, "b ..."]:
  """Mixes each row with the row before it, which gets the weight 1 - `weight`."""
  return weight * batch + (1 - weight) * jnp.roll(batch, 1, axis=0)


def mixup(
  key: PRNGKeyArray,
  images: Float[Array, "b h w c"],
  targets: Float[Array, " b *k"],
  alpha: float,
) -> tuple[Float[Array, "b h w c"], Float[Array, " b *k"]]:
  """Averages each image and its target with another's (Zhang et al. 2018, section 2).

  As in torchvision's MixUp, the whole batch has one weight, and each image is mixed
  with the previous image of the batch.

  Args:
    key: the same key always gives the same weight.
    images: values of any range.
    targets: for classification, each row sums to 1.
    alpha: the weight is drawn from Beta(alpha, alpha); 0 changes nothing.

  Returns:
    Images and targets, shapes and dtypes as given.
  """
  if not alpha:
    return images, targets
  weight = _beta(key, alpha)
  return _interpolate(images, weight), _interpolate(targets, weight)


def cutmix(
  key: PRNGKeyArray,
  images: Num[Array, "b h w c"],
  targets: Float[Array, " b *k"],
  alpha: float,
) -> tuple[Num[Array, "b h w c"], Float[Array, " b *k"]]:
  """Pastes a box of another image into each (Yun et al. 2019, section 3.1).

  As in torchvision's CutMix, the whole batch has one box, and its content comes from
  the previous image of the batch. The centre of the box is uniform, and the box is cut
  at the image border. The targets are weighted by the resulting fractions of pixels.

  Args:
    key: the same key always gives the same box.
    images: values of any type and range.
    targets: for classification, each row sums to 1.
    alpha: 1 - (area of the box) / (area of the image) is drawn from Beta(alpha, alpha),
      before the box is cut at the border; 0 changes nothing.

  Returns:
    Images and targets, shapes and dtypes as given.
  """
  if not alpha:
    return images, targets
  _, height, width, _ = images.shape
  share_key, row_key, column_key = jax.random.split(key, 3)
  half = jnp.sqrt(1 - _beta(share_key, alpha)) / 2
  rows, columns = (half * height).astype(jnp.int32), (half * width).astype(jnp.int32)
  row = jax.random.randint(row_key, (), 0, height)
  column = jax.random.randint(column_key, (), 0, width)
  # A box may extend past the image. The mask covers only the image, so it cuts the box.
  box = box_mask(
    row - rows, row + rows, column - columns, column + columns, images.shape[1:]
  )
  mixed = jnp.where(box, jnp.roll(images, 1, axis=0), images)
  return mixed, _interpolate(targets, 1 - jnp.mean(box))


def mix(
  key: jax.Array,
  images: jax.Array,
  targets: jax.Array,
  mixup_alpha: float,
  cutmix_alpha: float,
) -> tuple[jax.Array, jax.Array]:
  """Applies `mixup` or `cutmix` to the batch, each with probability 1/2.

  Args:
    key: PRNG key; the same key always gives the same batch.
    images: [B, H, W, C] float32.
    targets: [B, K] float32, each row sums to 1.
    mixup_alpha: see `mixup`; at 0 the batch always gets `cutmix`.
    cutmix_alpha: see `cutmix`; at 0 the batch always gets `mixup`.

  Returns:
    Images and targets, shapes and dtypes as given; unchanged if both are 0.
  """
  if not cutmix_alpha:
    return mixup(key, images, targets, mixup_alpha)
  if not mixup_alpha:
    return cutmix(key, images, targets, cutmix_alpha)
  choice_key, key = jax.random.split(key)
  mixed: tuple[jax.Array, jax.Array] = jax.lax.cond(
    jax.random.bernoulli(choice_key),
    lambda: mixup(key, images, targets, mixup_alpha),
    lambda: cutmix(key, images, targets, cutmix_alpha),
  )
  return mixed


def create_mix(augment: AugmentConfig) -> Mix | None:
  """Returns `mix` with these settings; None if they mix nothing."""
  if not (augment.mixup or augment.cutmix):
    return None
  return partial(mix, mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix)
