"""Data sets: where images come from, and how batches of them reach the step."""

from jax.sharding import Mesh

from resnet_jax.config import DataConfig
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.sources import load_source
from resnet_jax.sharding import check_batch_size


def create_dataset(
  config: DataConfig, split: str, batch_size: int, mesh: Mesh
) -> ResidentDataset:
  """Loads a split of the configured data set and puts it on the devices.

  Args:
    config: which data set.
    split: its `train_split` or `eval_split`.
    batch_size: over all devices.
    mesh: the devices.

  Raises:
    ValueError: a mean or std that does not fit the channels, a batch that does not
      split over the devices, or what `load_source` refuses.
    FileNotFoundError: the data set is not there.
  """
  check_batch_size(batch_size, mesh)
  source = load_source(config, split)
  channels = source.images.shape[-1]
  for field in ("mean", "std"):
    values = getattr(config, field)
    if len(values) not in (1, channels):
      raise ValueError(
        f"config.data.{field}={values} must have 1 value or one for each of the "
        f"{channels} channels"
      )
  return ResidentDataset(source, batch_size, mesh)
