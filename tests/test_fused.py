"""On one CPU, evaluation computes a convolution and what follows it in one call."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import variables_of
from flax import linen as nn

from resnet_jax.kernels import native
from resnet_jax.models import layers
from resnet_jax.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet_jax.models.layers import Conv, SqueezeExcite
from resnet_jax.models.norms import NORMS
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import CifarStem, DeepStem
from resnet_jax.models.summary import list_layers
from resnet_jax.runtime import compilation

pytestmark = pytest.mark.skipif(not native._load(), reason="needs a C++ compiler")

# What differs from two basic blocks with a CIFAR stem; how many calls are fused.
NETS = {
  "basic": ({}, 6),
  "bottleneck": ({"block": BottleneckBlock}, 9),
  # `nn.scan` traces its block twice.
  "scan": ({"stage_sizes": (3, 1), "scan": True}, 10),
  "deep stem": ({"stem": DeepStem, "features": 32}, 8),
  "A": ({"shortcut": SHORTCUTS["A"]}, 5),
  "D": ({"shortcut": SHORTCUTS["D"]}, 6),
  "highway": ({"shortcut": SHORTCUTS["highway"]}, 6),
  "none": ({"shortcut": SHORTCUTS["none"]}, 5),
  "squeeze-excite": ({"block": partial(BasicBlock, attention=SqueezeExcite)}, 6),
  "frozen": ({"norm": NORMS["frozen"]}, 6),
  "group": ({"norm": NORMS["group"]}, 0),
  # Their last convolution has no norm, nor has a 3x3 of several groups a kernel here.
  "pre-activation": ({"block": PreActBasicBlock, "pre_activation": True}, 2),
  "pre-activation 2": ({"block": PreActBottleneckBlock, "pre_activation": True}, 4),
  "groups": ({"block": partial(BottleneckBlock, groups=2)}, 7),
}


def assert_close(ours, expected):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(ours, expected, atol=2e-5 * scale, rtol=0)


@pytest.fixture
def fused(monkeypatch):
  """The calls that are fused, from now on."""
  calls = []

  def count(*args):
    calls.append(args)
    return call(*args)

  call = layers.fused_conv2d
  monkeypatch.setattr(layers, "fused_conv2d", count)
  return calls


@pytest.mark.parametrize(("changes", "number"), NETS.values(), ids=NETS)
def test_logits_are_the_same(monkeypatch, fused, changes, number):
  settings = {"stage_sizes": (1, 1), "features": 16, "stem": CifarStem}
  model = ResNet(**settings | {"num_classes": 4} | changes)
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  variables = variables_of(model, images, spread=0.3)
  expected = compilation.jit_once(model.apply)(variables, images)
  assert not fused
  monkeypatch.setattr(native, "_is_alone", lambda: True)
  ours = compilation.jit_once(lambda *a: model.apply(*a))(variables, images)
  assert len(fused) == number
  assert_close(ours, expected)


def test_gradients_of_frozen_scanned_blocks_are_the_same(monkeypatch, fused):
  model = ResNet(
    (3,), 4, 16, stem=CifarStem, norm=NORMS["frozen"], scan=True, remat=False
  )
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  variables = variables_of(model, x, spread=0.3)

  def gradients():
    def loss(params):
      logits = model.apply(variables | {"params": params}, x, train=True)
      return jnp.sum(jnp.sin(logits))

    return jax.jit(jax.grad(loss))(variables["params"])

  expected = gradients()
  monkeypatch.setattr(native, "_is_alone", lambda: True)
  jax.tree.map(assert_close, gradients(), expected)
  assert fused


def test_gradients_are_the_same(monkeypatch, fused):
  """Of evaluation, as pictures that explain a network need them."""
  norm = partial(NORMS["batch"], use_running_average=True)
  shortcut = partial(SHORTCUTS["B"], norm=norm)
  block = BottleneckBlock(16, norm=norm, shortcut=shortcut)
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
  variables = variables_of(block, x, spread=0.3)

  def gradients():
    def loss(variables, x):
      return jnp.sum(jnp.sin(block.apply(variables, x)))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables, x)

  expected = gradients()
  monkeypatch.setattr(native, "_is_alone", lambda: True)
  jax.tree.map(assert_close, gradients(), expected)
  assert len(fused) == 4


def test_layers_whose_results_are_asked_for_are_called(monkeypatch, fused):
  monkeypatch.setattr(native, "_is_alone", lambda: True)
  norm = partial(NORMS["batch"], use_running_average=True)
  block, x = BasicBlock(16, norm=norm), jnp.ones((1, 8, 8, 16))
  variables = variables_of(block, x, spread=0.3)
  _, state = block.apply(
    variables, x, capture_intermediates=True, mutable=["intermediates"]
  )
  assert {"conv1", "bn1", "conv2", "bn2"} <= set(state["intermediates"])
  assert not fused
  block.apply(variables, x)
  assert len(fused) == 2


def test_a_summary_has_all_layers(monkeypatch, fused):
  model = ResNet((1,), features=16)
  expected = list_layers(model, (16, 16, 3))
  monkeypatch.setattr(native, "_is_alone", lambda: True)
  assert list_layers(model, (16, 16, 3)) == expected
  assert not fused


def test_other_layers_are_called(monkeypatch, fused):
  """A layer that somebody derived from ours may do more."""
  monkeypatch.setattr(native, "_is_alone", lambda: True)

  class Twice(Conv):
    @nn.compact
    def __call__(self, x):
      return 2 * super().__call__(x)

  x = jax.random.normal(jax.random.key(0), (1, 8, 8, 16))
  norm = partial(NORMS["batch"], use_running_average=True)
  block, twice = (BasicBlock(16, conv=conv, norm=norm) for conv in (Conv, Twice))
  variables = variables_of(block, x, spread=0.3)
  y = block.apply(variables, x)
  assert len(fused) == 2
  assert jnp.abs(twice.apply(variables, x) - y).max() > 0.1
  assert len(fused) == 2


@pytest.mark.parametrize(
  "path", [("conv1", "kernel"), ("bn1", "scale"), ("bn2", "bias")]
)
def test_wrong_variables_are_an_error(monkeypatch, fused, path):
  monkeypatch.setattr(native, "_is_alone", lambda: True)
  norm = partial(NORMS["batch"], use_running_average=True)
  block, x = BasicBlock(16, norm=norm), jnp.ones((1, 8, 8, 16))
  variables = variables_of(block, x, spread=0.3)
  *parents, name = path
  values = variables["params"]
  for parent in parents:
    values = values[parent]
  values[name] = jnp.ones((3, 3, 16, 32) if name == "kernel" else 32)
  with pytest.raises(flax.errors.FlaxError, match="|".join(path)):
    block.apply(variables, x)


def test_other_shortcuts_are_called(monkeypatch, fused):
  monkeypatch.setattr(native, "_is_alone", lambda: True)

  class Half(SHORTCUTS["B"]):
    def __call__(self, x, residual):
      return super().__call__(x, residual / 2)

  norm = partial(NORMS["batch"], use_running_average=True)
  x = jax.random.normal(jax.random.key(0), (1, 8, 8, 16))
  whole, half = (
    BasicBlock(16, norm=norm, shortcut=shortcut) for shortcut in (SHORTCUTS["B"], Half)
  )
  variables = variables_of(whole, x, spread=0.3)
  assert jnp.abs(whole.apply(variables, x) - half.apply(variables, x)).max() > 0.1
  # In front of the derived one there is no ReLU.
  assert [relu for *_, relu in fused] == [True, True, True, False]
