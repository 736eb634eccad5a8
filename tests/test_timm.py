"""timm's networks: the same parameters, and the same logits for the same weights.

`TIMM_ALL=1 pytest tests/test_timm.py` compares the parameters of all networks, in about
a minute.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import timm_reference
from timm_reference import FEATURES, NUM_CLASSES, SMALL, digest, images, value_of

from resnet_jax import MODELS, create_model, weights
from resnet_jax.models.variables import abstract_variables
from resnet_jax.runtime.compilation import jit_once
from resnet_jax.weights.tensors import torch_shape
from resnet_jax.weights.torch_names import torch_names

REFERENCE = json.loads(timm_reference.PATH.read_text(encoding="utf-8"))
# Pruned networks have irregular widths; the other has a kind of block for each stage.
MISSING = {"ecaresnet50d_pruned", "ecaresnet101d_pruned", "test_resnet"}
ALL = REFERENCE["shapes"].keys() - MISSING
SOME = {*SMALL, "resnet18", "ecaresnetlight", "resnetv2_18d", "seresnextaa201d_32x8d"}
COMPARED = sorted(ALL if os.environ.get("TIMM_ALL") else SOME)


def torch_shapes(model) -> dict[str, tuple[int, ...]]:
  """Returns the shape in PyTorch of each parameter and statistic by its name."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = abstract_variables(model, (32, 32, 3), sharding)
  found = {}
  for name, keys in torch_names(model, abstract).items():
    leaf = abstract
    for key in keys:
      leaf = leaf[key]
    shape = torch_shape(leaf.shape)
    is_layer = ".se." in name or name.startswith("head.")
    found[name] = (*shape, 1, 1) if len(shape) == 2 and is_layer else shape
  return found


def test_all_of_timm_but_three_are_here():
  assert REFERENCE["shapes"].keys() - MODELS.keys() == MISSING


@pytest.mark.parametrize("name", COMPARED)
def test_parameters_have_the_names_and_shapes_of_timm(name):
  assert digest(torch_shapes(create_model(name))) == REFERENCE["shapes"][name]


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_those_of_timm(name, tmp_path):
  model = create_model(name, NUM_CLASSES).clone(
    stage_sizes=SMALL[name], features=FEATURES
  )
  model = model.clone(stem_features=model.stem_features or 64)
  path: Path = tmp_path / "weights.safetensors"
  arrays = {key: value_of(key, shape) for key, shape in torch_shapes(model).items()}
  safetensors.numpy.save_file(arrays, path)
  variables = weights.load(path, model)
  ours = jit_once(model.apply)(variables, images())
  expected = np.asarray(REFERENCE["logits"][name])
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_recorded_values_are_those_of_the_installed_timm():
  pytest.importorskip("timm")
  pytest.importorskip("torch")
  for name, sizes in SMALL.items():
    expected = np.asarray(REFERENCE["logits"][name])
    found = timm_reference.logits_of(name, sizes)
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
