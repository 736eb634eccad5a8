"""Data sets: where images come from, and how batches of them reach the step."""

from jax.sharding import Mesh

from resnet_jax.config import Config
from resnet_jax.data.resident import ResidentDataset
from resnet_jax.data.sources import load_source
from resnet_jax.sharding import check_batch_size


def create_dataset(config: Config, split: str, mesh: Mesh) -> ResidentDataset:
  """Loads a split of the configured data set and puts it on the devices.

  Args:
    config: `data` and `batch_size` are used.
    split: `config.data.train_split` or `eval_split`.
    mesh: the devices.

  Raises:
    ValueError: a batch that does not split over the devices, or what `load_source`
      refuses.
    FileNotFoundError: the data set is not there.
  """
  check_batch_size(config.batch_size, mesh)
  source = load_source(config.data, split)
  channels = source.images.shape[-1]
  for field in ("mean", "std"):
    values = getattr(config.data, field)
    if len(values) not in (1, channels):
      raise ValueError(
        f"config.data.{field}={values} must have 1 value or one for each of the "
        f"{channels} channels"
      )
  return ResidentDataset(source, config.batch_size, mesh)
