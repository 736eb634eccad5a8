"""The feature pyramid and the head of a segmentation network."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal, variables_of
from flax import linen as nn
from small_detector import tiny_detector

from resnet_jax import FPN, Backbone, FCNHead, ResNet, StridedLevels, create_model
from resnet_jax.models import segmentation
from resnet_jax.models.dense_heads import DeepLabV3Head
from resnet_jax.models.folding import fold_batch_norm
from resnet_jax.models.norms import FrozenBatchNorm
from resnet_jax.models.stems import CifarStem
from resnet_jax.runtime.compilation import jit_once
from resnet_jax.runtime.errors import UserError


def maps_of(*sizes: tuple[int, int]) -> dict[str, jax.Array]:
  """Returns random feature maps of 8, 16, ... channels."""
  return {
    f"c{level}": normal(2, *size, 2 * 2**level, seed=level)
    for level, size in enumerate(sizes, start=2)
  }


@pytest.mark.parametrize(
  "sizes",
  [
    [(16, 24), (8, 12), (4, 6)],
    [(9, 7), (5, 4), (3, 2)],  # Sizes are rounded up.
    [(8, 8), (4, 4), (4, 4)],  # Dilation replaces a stride.
  ],
)
def test_pyramid_adds_what_is_above(sizes):
  maps = maps_of(*sizes)
  pyramid = FPN(features=8)
  params = variables_of(pyramid, maps)["params"]
  kernels = jax.tree.map(jnp.zeros_like, params)
  for level in (2, 3, 4):  # Copies the first channels and adds a bias.
    kernel = jnp.eye(2 * 2**level, 8)[None, None]
    kernels[f"lateral{level}"] = {"kernel": kernel, "bias": jnp.full(8, float(level))}
    kernels[f"output{level}"]["kernel"] = (
      kernels[f"output{level}"]["kernel"].at[1, 1].set(jnp.eye(8))
    )
  ours = pyramid.apply({"params": kernels}, maps)
  assert list(ours) == ["p2", "p3", "p4"]
  merged = 0
  for level in (4, 3, 2):
    own = np.asarray(maps[f"c{level}"])[..., :8] + level
    if level < 4:
      for axis in (1, 2):
        if merged.shape[axis] < own.shape[axis]:
          index = np.arange(own.shape[axis]) // 2
          merged = merged.take(index, axis)
    merged = own + merged
    np.testing.assert_allclose(ours[f"p{level}"], merged, rtol=1e-6)


def test_pyramid_has_an_extra_level():
  maps = maps_of((8, 8), (4, 4), (2, 2), (1, 1))
  plain, extra = FPN(features=8), FPN(features=8, extra_level=True)
  variables = variables_of(plain, maps)
  expected, ours = (module.apply(variables, maps) for module in (plain, extra))
  assert list(ours) == ["p2", "p3", "p4", "p5", "p6"]
  np.testing.assert_array_equal(ours.pop("p6"), expected["p5"][:, ::2, ::2])
  jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("from_backbone", [False, True])
def test_pyramid_has_levels_of_strided_convolutions(from_backbone):
  maps, levels = maps_of((9, 7)), partial(StridedLevels, from_backbone=from_backbone)
  pyramid = FPN(features=8, extra_cls=levels)
  variables = variables_of(pyramid, maps)
  ours = pyramid.apply(variables, maps)
  assert [x.shape[1:3] for x in ours.values()] == [(9, 7), (5, 4), (3, 2)]
  params = variables["params"]["extra"]

  def conv(x, layer):
    y = jax.lax.conv_general_dilated(
      x,
      layer["kernel"],
      (2, 2),
      [(1, 1)] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + layer["bias"][None, None, None]

  p3 = conv(maps["c2"] if from_backbone else ours["p2"], params["conv1"])
  np.testing.assert_allclose(ours["p3"], p3, atol=1e-5)
  p4 = conv(jax.nn.relu(p3), params["conv2"])
  np.testing.assert_allclose(ours["p4"], p4, atol=1e-5)


def test_pyramid_has_one_way_to_coarser_levels():
  with pytest.raises(UserError, match="both make coarser maps; choose one"):
    FPN(extra_level=True, extra_cls=StridedLevels).init(
      jax.random.key(0), maps_of((2, 2))
    )


def test_pyramid_of_maps_that_do_not_fit():
  with pytest.raises(ValueError, match=r"size 3 must have .* finer map, 8"):
    FPN().init(jax.random.key(0), maps_of((8, 8), (3, 3)))


def test_head_is_a_classifier_of_every_pixel():
  x, head = normal(2, 4, 6, 16), FCNHead(num_classes=5)
  variables = variables_of(head, x, (8, 12))
  assert variables["params"]["conv"]["kernel"].shape == (3, 3, 16, 4)
  params = variables["params"]
  ours = head.apply(variables, x, (4, 6))  # Not enlarged.
  y = jax.lax.conv_general_dilated(
    x,
    params["conv"]["kernel"],
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  y = jax.nn.relu(y / np.sqrt(1 + 1e-5)) @ params["head"]["kernel"]
  np.testing.assert_allclose(ours, y, rtol=0, atol=1e-5)
  enlarged = head.apply(variables, x, (8, 12))
  np.testing.assert_allclose(
    enlarged, jax.image.resize(y, (2, 8, 12, 5), "bilinear"), rtol=0, atol=1e-5
  )


def test_dropout_zeroes_channels_in_training():
  x, head = jnp.ones((8, 4, 4, 64)), FCNHead(num_classes=3, dropout=0.5)
  variables = variables_of(head, x, (4, 4))

  def logits(seed: int):
    rngs = {"dropout": jax.random.key(seed)}
    return head.apply(variables, x, (4, 4), True, rngs=rngs, mutable="batch_stats")[0]

  assert (logits(0) != logits(1)).any()
  np.testing.assert_array_equal(logits(0), logits(0))
  assert np.ptp(np.asarray(logits(0))[:, 1:3, 1:3], axis=(1, 2)).max() < 1e-5


class Segmenter(nn.Module):
  """Backbone, pyramid and head as layers of one network."""

  @nn.compact
  def __call__(self, images, train=False):
    net = ResNet(stage_sizes=(1, 1, 1), features=8, stem_cls=CifarStem)
    maps = Backbone(net, output_stride=2, name="backbone")(images, train)
    finest = FPN(features=16, name="fpn")(maps)["p2"]
    return FCNHead(num_classes=4, name="head")(finest, images.shape[1:3], train)


def test_gradients_reach_every_parameter():
  model, images = Segmenter(), normal(2, 12, 12, 3)
  labels = jnp.arange(2 * 12 * 12).reshape(2, 12, 12) % 4
  variables = variables_of(model, images)
  assert {"stem", "stage3"} < variables["params"]["backbone"].keys()

  @jit_once
  @jax.grad
  def gradients(params):
    logits = model.apply(variables | {"params": params}, images)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -chosen.mean()

  found = gradients(variables["params"])
  for name in ("output3", "output4"):  # These outputs are not used here.
    del found["fpn"][name]
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    assert jnp.abs(leaf).max() > 0, path


def test_a_dilated_segmenter_exports_with_any_batch_size():
  net, head = ResNet(stage_sizes=(1, 1, 1), features=8, stem_cls=CifarStem), FCNHead(3)
  images = normal(2, 16, 16, 3)

  def init(images):
    key = jax.random.key(0)
    maps, variables = Backbone(net, 2).init_with_output(key, images)
    return {"net": variables, "head": head.init(key, maps["c4"], (16, 16))}

  variables = jit_once(init)(images)

  @jax.jit
  def segment(images):
    maps = Backbone(net, 2).apply(variables["net"], images)
    return head.apply(variables["head"], maps["c4"], images.shape[1:3])

  batch = jax.export.symbolic_shape("batch, 16, 16, 3")
  exported = jax.export.export(segment)(jax.ShapeDtypeStruct(batch, jnp.float32))
  np.testing.assert_allclose(exported.call(images), segment(images), atol=1e-5)


FROZEN = create_model("resnet8").clone(norm_cls=partial(FrozenBatchNorm, epsilon=0.0))


@pytest.mark.parametrize(
  "network",
  [
    segmentation.Segmenter(
      create_model("resnet8"), 3, FCNHead, aux=True, output_stride=None
    ),
    segmentation.Segmenter(FROZEN, 3, DeepLabV3Head, output_stride=None),
    tiny_detector(),
  ],
  ids=["fcn", "deeplabv3", "retinanet"],
)
def test_folded_networks_for_places_give_the_same(network):
  images = normal(2, 16, 16, 1)
  variables = variables_of(network, images, spread=0.3)
  folded, own = fold_batch_norm(network, variables)
  for name, expected in network.apply(variables, images, train=False).items():
    found = folded.apply(own, images, train=False)[name]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
  paths = jax.tree_util.tree_leaves_with_path(own)
  assert not any("mean" in jax.tree_util.keystr(path) for path, _ in paths)
