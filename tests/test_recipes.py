"""Configs of published recipes have the published values."""

import pytest

from resnet_jax.config.files import load_config_file


@pytest.mark.parametrize(
  (
    "name",
    "epochs",
    "size",
    "rate",
    "decay",
    "magnitude",
    "mixup",
    "smoothing",
    "depth",
  ),
  [
    ("a1", 600, 224, 5e-3, 0.01, 7, 0.2, 0.1, 0.05),
    ("a3", 100, 160, 8e-3, 0.02, 6, 0.1, 0.0, 0.0),
  ],
)
def test_the_procedures_of_resnet_strikes_back(
  name, epochs, size, rate, decay, magnitude, mixup, smoothing, depth
):
  """Their source is Wightman et al. 2021, table 2."""
  config = load_config_file(f"imagenet_resnet50_{name}")
  optim, augment, data = config.optim, config.augment, config.data
  assert (config.num_epochs, config.batch_size) == (epochs, 2048)
  assert (data.image_size, data.eval_crop) == (size, 224)
  assert data.eval_resize == round(224 / 0.95)
  assert (optim.name, optim.learning_rate, optim.weight_decay) == ("lamb", rate, decay)
  assert (optim.schedule, optim.warmup, optim.warmup_epochs) == ("cosine", "linear", 5)
  assert (augment.policy, augment.magnitude) == ("rand", 3 * magnitude)
  assert (augment.mixup, augment.cutmix, augment.erasing) == (mixup, 1.0, 0.0)
  assert (optim.label_smoothing, config.model.stochastic_depth) == (smoothing, depth)
