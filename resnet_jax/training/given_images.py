"""The images of a run that the settings name or that the user gives."""

from jax.sharding import Mesh

from resnet_jax.config.schema import Config, DataConfig
from resnet_jax.data import Dataset, Source, is_in_memory, is_source
from resnet_jax.data.pipelines.opening import create_dataset

# A split given by the user: a data set ready to train on, or a source of its images.
Images = Dataset | Source


def open_training(config: Config, mesh: Mesh, images: Images | None = None) -> Dataset:
  """Opens the training images, unless they are ready; errors as `create_dataset`."""
  if images is not None and not is_source(images):
    return images
  args = config.data, config.batch_size, mesh, config.augment
  return create_dataset(*args, source=images)


def image_size_of(data: DataConfig, images: Images | None) -> tuple[int, int]:
  """Returns height and width of the images of the network.

  Args:
    data: images that are decoded during the run become squares of its `image_size`.
    images: None if the settings name them.
  """
  if images is not None and not is_source(images):
    return images.image_shape[:2]
  if images is not None and is_in_memory(images):
    height, width = images.images.shape[1:3]
    return height, width
  return data.image_size, data.image_size
