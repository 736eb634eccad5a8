"""The layer table against published numbers."""

import pytest

from resnet_jax import create_model
from resnet_jax.models.summary import list_layers


@pytest.mark.parametrize(
  ("name", "size", "params", "giga_multiply_adds"),
  [
    # torchvision's `num_params` and `_ops`.
    ("resnet18", 224, 11_689_512, 1.81),
    ("resnet50", 224, 25_557_032, 4.09),
    ("resnext50_32x4d", 224, 25_028_904, 4.23),
    ("wide_resnet50_2", 224, 68_883_240, 11.40),
    # The paper's 3.8 G are for the stride on the first 1x1 convolution.
    ("resnetv1_50", 224, 25_557_032, 3.86),
    ("resnet20", 32, 269_722, 0.04),
  ],
)
def test_totals(name, size, params, giga_multiply_adds):
  layers = list_layers(create_model(name), (size, size, 3))
  assert sum(layer.params for layer in layers) == params
  total = sum(layer.multiply_adds for layer in layers)
  assert round(total / 1e9, 2) == giga_multiply_adds


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"norm": "frozen"}])
def test_every_layer_is_listed_once_in_order(options):
  layers = list_layers(create_model("resnet14", 7, **options), (32, 32, 1))
  names = [layer.name for layer in layers]
  assert len(names) == len(set(names)) == 2 * 13 + 1
  assert names[:3] == ["stem/conv", "stem/bn", "stage1/block1/conv1"]
  assert layers[0].output_shape == (32, 32, 16)
  assert layers[0].output_bytes == 32 * 32 * 16 * 4
  assert layers[0].multiply_adds == 32 * 32 * 9 * 16
  assert (layers[-1].name, layers[-1].params) == ("head", 7 * 65)
