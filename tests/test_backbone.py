"""Feature maps of each stage, with strides or with dilation in their place."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal, variables_of

from resnet_jax import (
  Backbone,
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
  ResNet,
  create_model,
)
from resnet_jax.models.pooling import average_pool, blur_pool
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import CifarStem
from resnet_jax.runtime.compilation import jit_once
from resnet_jax.runtime.errors import UserError

NETS = {
  "basic": {"block_cls": BasicBlock},
  "bottleneck": {"block_cls": BottleneckBlock},
  "v1": {"block_cls": partial(BottleneckBlock, stride_on_1x1=True)},
  "groups": {"block_cls": partial(BottleneckBlock, groups=2)},
  "option D": {"block_cls": BasicBlock, "shortcut_cls": SHORTCUTS["D"]},
  "option A": {"block_cls": BasicBlock, "shortcut_cls": SHORTCUTS["A"]},
  "highway": {"block_cls": BasicBlock, "shortcut_cls": SHORTCUTS["highway"]},
  "v2, basic": {"block_cls": PreActBasicBlock, "pre_activation": True},
  "v2, bottleneck": {"block_cls": PreActBottleneckBlock, "pre_activation": True},
  "3x3 shortcut": {"block_cls": BasicBlock, "shortcut_cls": SHORTCUTS["B3x3"]},
  "average": {"block_cls": partial(BasicBlock, anti_alias=average_pool)},
  "blur": {"block_cls": partial(BottleneckBlock, anti_alias=blur_pool)},
  "v2, blur": {
    "block_cls": partial(PreActBottleneckBlock, anti_alias=blur_pool),
    "pre_activation": True,
  },
  "scanned": {"block_cls": BasicBlock, "scan": True},
}


def create(net: dict) -> ResNet:
  return ResNet(stage_sizes=(1, 2, 1, 2), features=8, stem_cls=CifarStem, **net)


def init(module, images):
  """Returns variables whose running statistics differ from the initial ones.

  The means have both signs, so that ReLU does not set a whole feature map to 0.
  """
  return variables_of(module, images, spread=0.15)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_dilation_gives_the_same_values_at_more_places(net):
  net, images = create(net), normal(2, 19, 24, 3)
  variables = init(net, images)
  strided = jit_once(Backbone(net).apply)(variables, images)
  for output_stride in (1, 4):
    dilated = jit_once(Backbone(net, output_stride).apply)(variables, images)
    assert list(strided) == list(dilated) == ["c2", "c3", "c4", "c5"]
    for i, name in enumerate(strided):
      ratio = max(1, 2**i // output_stride)
      ours, theirs = dilated[name][:, ::ratio, ::ratio], strided[name]
      top = np.abs(theirs).max()
      assert (np.abs(theirs) > 0.1 * top).mean() > 0.2
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * top)
      stride = min(2**i, output_stride)
      assert dilated[name].shape[1:3] == (-(-19 // stride), -(-24 // stride))


@pytest.mark.parametrize(
  ("name", "features"),
  [("resnet18", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048))],
)
@pytest.mark.parametrize("output_stride", [None, 4, 8, 16, 32])
def test_strides_and_features(name, features, output_stride):
  backbone = Backbone(create_model(name), output_stride)
  call = partial(backbone.init_with_output, jax.random.key(0))
  maps = jax.eval_shape(call, jnp.ones((1, 224, 64, 3)))[0].values()
  for stride, channels, array in zip((4, 8, 16, 32), features, maps, strict=True):
    stride = min(stride, output_stride or stride)
    assert array.shape == (1, 224 // stride, 64 // stride, channels)


@pytest.mark.parametrize("name", ["resnet8", "resnetv2_18"])
def test_variables_are_the_nets_without_its_head(name):
  net, images = create_model(name).clone(features=4), jnp.ones((1, 32, 32, 3))
  expected = jit_once(net.init)(jax.random.key(0), images)
  del expected["params"]["head"]
  ours = jit_once(Backbone(net).init)(jax.random.key(0), images)
  jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_the_classifier_is_on_top_of_the_last_map():
  net, images = create_model("resnet8"), normal(2, 32, 32, 3)
  variables = init(net, images)
  maps = Backbone(net).apply(variables, images)
  head = variables["params"]["head"]
  expected = maps["c4"].mean((1, 2)) @ head["kernel"] + head["bias"][None]
  ours = net.apply(variables, images)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_training_moves_the_statistics():
  backbone, images = Backbone(create_model("resnet8"), 2), normal(2, 16, 16, 3)
  variables = init(backbone, images)
  _, updates = backbone.apply(variables, images, train=True, mutable="batch_stats")
  leaves = (jax.tree.leaves(tree["batch_stats"]) for tree in (variables, updates))
  for before, after in zip(*leaves, strict=True):
    assert (before != after).any()


@pytest.mark.parametrize("output_stride", [0, 1, 5, 64])
def test_a_stride_that_no_stage_has(output_stride):
  backbone = Backbone(create_model("resnet18"), output_stride)
  message = rf"output_stride={output_stride} must be one of \[4, 8, 16, 32\]"
  with pytest.raises(ValueError, match=message):
    backbone.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))


@pytest.mark.parametrize(
  ("name", "stride"),
  [("resnet20", 2), ("resnext50_32x4d", 16), ("resnetv2_50x3_bit", None)],
)
def test_strides_and_features_are_known_before_a_call(name, stride):
  backbone = Backbone(create_model(name), stride, maps=("c4", "c2"))
  call = partial(backbone.init_with_output, jax.random.key(0))
  maps = jax.eval_shape(call, jnp.ones((1, 64, 64, 3)))[0]
  assert {key: x.shape[-1] for key, x in maps.items()} == backbone.features
  assert {key: 64 // x.shape[1] for key, x in maps.items()} == backbone.strides
  assert [*backbone.features] == [*backbone.strides] == ["c2", "c4"]


def test_an_unknown_map_is_refused():
  with pytest.raises(UserError, match=r"maps='c5' is unknown; choose from c2, c3, c4"):
    _ = Backbone(create_model("resnet20"), maps=("c5",)).features
