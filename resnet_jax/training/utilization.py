"""How long the operations of training take at the chips' peak rate."""

import functools
from functools import partial

import jax
import jax.numpy as jnp

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.summary import list_layers
from resnet_jax.runs.metric_writer import SecondsAtPeak
from resnet_jax.runtime.chips import FLOPS_PER_S
from resnet_jax.runtime.errors import describe_error
from resnet_jax.runtime.terminal import warn
from resnet_jax.training.experiment import Experiment


def create_seconds_at_peak(experiment: Experiment) -> SecondsAtPeak:
  """Returns the numerator of model FLOPs utilisation (MFU), for the metric writer.

  The operations are those that the network needs, as in PaLM (Chowdhery et al. 2022,
  appendix B): three times the multiplications and additions of the forward pass, as the
  two gradients of a convolution cost as much as itself. SAM needs this twice. A
  teacher, and what `remat` computes again, do not count. The peak rate is that of
  bfloat16, whatever the dtype.

  Returns:
    (step after an update) -> seconds of one of its images on all devices. They are 0 if
    the peak rate is unknown, with `config.freeze`, and for a network of the user.
  """
  config, plan, model = experiment.config, experiment.plan, experiment.model
  rate = FLOPS_PER_S.get(experiment.mesh.devices.flat[0].device_kind)
  if rate is None or config.freeze or not isinstance(model, ResNet):
    return lambda _: 0.0
  passes = 3 * (1 + (config.optim.sam_rho > 0))
  # The batch of a step: the user's own augmentation may need more than one image.
  batch = config.batch_size, *experiment.train_data.image_shape
  images = jax.ShapeDtypeStruct(batch, jnp.uint8)

  def count(size: int) -> int:
    """Returns the multiplications and additions of the forward pass of one image."""
    preprocess = (
      partial(experiment.preprocess, size=size) if size else experiment.preprocess
    )
    shape = jax.eval_shape(preprocess, images, experiment.data_key).shape[1:]
    return sum(layer.multiply_adds for layer in list_layers(model, shape))

  @functools.cache
  def seconds(size: int) -> float:
    try:
      multiply_adds = count(size)
    except Exception as error:  # Of any code; a missing number ends no run.
      warn(f"the run continues without MFU: {describe_error(error)}")
      return 0.0
    return 2 * passes * multiply_adds / (rate * experiment.mesh.size)

  return lambda step: seconds(plan.size_at(step - 1))
