"""Views of an image: crops and mirror images, whose probabilities are averaged.

Shapes: B batch, S side of the images, V views, C channels.
"""

import dataclasses

import jax.numpy as jnp

from resnet_jax.config.schema import DataConfig
from resnet_jax.runtime.arrays import Array, Num
from resnet_jax.runtime.errors import UserError

CROPS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Views:
  """Which views of an image a network sees.

  Attributes:
    crops: 1 is the middle; 5 adds the four corners; 10 adds the mirror images of these
      five (Krizhevsky et al. 2012, section 4.1, and He et al. 2015, section 3.4).
    flip: add the mirror image of each view.
    scales: lengths in pixels to which the short side is resized; the whole middle
      square of each of these sizes is then a view, as the network is fully
      convolutional (He et al. 2015, section 3.4, where the images are not squares). ()
      is the usual size.
  """

  crops: int = 1
  flip: bool = False
  scales: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    if self.crops not in CROPS:
      raise UserError(f"crops={self.crops} must be one of {CROPS}")
    if self.crops > 1 and self.scales:
      raise UserError(
        f"crops={self.crops} and scales={self.scales} do not go together, as a scale "
        "takes the whole square; leave one of them out"
      )

  @property
  def is_mirrored(self) -> bool:
    return self.flip or self.crops == 10

  def data_of_passes(self, data: DataConfig) -> list[DataConfig]:
    """Returns the settings of the images for each pass over them.

    Raises:
      UserError: crops need images that are larger than a crop.
    """
    if self.scales:
      return [
        dataclasses.replace(data, eval_resize=side, eval_crop=side)
        for side in self.scales
      ]
    if self.crops == 1:
      return [data]
    resize, crop = data.eval_resize, data.eval_crop
    if not 0 < crop < resize:
      raise UserError(
        f"crops={self.crops} needs images that are resized to more than a crop, such "
        f"as --resize=256 --crop=224; they have resize={resize} and crop={crop}"
      )
    # The crops are taken from the middle square, as in Krizhevsky et al. 2012.
    return [dataclasses.replace(data, eval_crop=resize)]

  def of(
    self, images: Num[Array, "b s s2 c"], crop: int
  ) -> list[Num[Array, "b _ _ c"]]:
    """Returns the views of a batch.

    Args:
      images: images of one pass.
      crop: side of a crop.
    """
    views = [images] if self.crops == 1 else _five_crops(images, crop)
    mirrored = [jnp.flip(view, axis=2) for view in views] if self.is_mirrored else []
    return [*views, *mirrored]


def _five_crops(
  images: Num[Array, "b s s2 c"], crop: int
) -> list[Num[Array, "b _ _ c"]]:
  """Returns the middle, then the corners from the upper left to the lower right."""
  height, width = images.shape[1:3]
  bottom, right = height - crop, width - crop
  middle = round(bottom / 2), round(right / 2)
  places = [middle, (0, 0), (0, right), (bottom, 0), (bottom, right)]
  return [images[:, top : top + crop, left : left + crop] for top, left in places]
