"""Networks for semantic segmentation: their heads, sizes and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal, variables_of
from flax import linen as nn

from resnet_jax import (
  SEGMENTERS,
  DeepLabV3Head,
  ResNet,
  Segmenter,
  create_segmenter,
  kernels,
)
from resnet_jax.models.layers import Conv
from resnet_jax.models.stems import CifarStem
from resnet_jax.runtime.compilation import jit_once
from resnet_jax.weights import voc

# torchvision's `num_params` of each file of weights.
PARAMETERS = {
  "fcn_resnet50": 35_322_218,
  "fcn_resnet101": 54_314_346,
  "deeplabv3_resnet50": 42_004_074,
  "deeplabv3_resnet101": 60_996_202,
}
IMAGES = normal(2, 12, 16, 3)


def small_segmenter(**fields) -> Segmenter:
  """Returns a network of two blocks, whose last map has stride 2."""
  net = ResNet(stage_sizes=(1, 1), features=8, stem_cls=CifarStem)
  fields = {"net": net, "num_classes": 4, "output_stride": 2} | fields
  return Segmenter(**fields)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_parameters_are_as_many_as_published(name):
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(create_segmenter(name).init, jax.random.key(0), images)
  assert (
    sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == (PARAMETERS[name])
  )


def test_head_looks_at_several_scales():
  x = normal(1, 9, 9, 4)
  head = DeepLabV3Head(num_classes=2, rates=(2, 3), features=5)
  variables = variables_of(head, x, (9, 9))
  params = variables["params"]
  seen = {}

  def record(call, args, kwargs, context):
    y = call(*args, **kwargs)
    if isinstance(context.module, Conv) and context.method_name == "__call__":
      seen[context.module.name] = args[0], y
    return y

  with nn.intercept_methods(record):
    head.apply(variables, x, (9, 9))
  for number, rate in ((2, 2), (3, 3)):  # A pixel sees those that are `rate` away.
    kernel = params[f"aspp{number}_conv"]["kernel"]
    around = x[:, 4 - rate : 5 + rate : rate, 4 - rate : 5 + rate : rate]
    expected = jnp.einsum("bhwc,hwcf->bf", around, kernel)
    _, y = seen[f"aspp{number}_conv"]
    np.testing.assert_allclose(y[:, 4, 4], expected, rtol=0, atol=1e-5)
  mean, _ = seen["pool_conv"]
  np.testing.assert_allclose(mean, x.mean((1, 2), keepdims=True), rtol=0, atol=1e-6)
  joined, _ = seen["project_conv"]
  assert joined.shape == (1, 9, 9, 4 * 5)
  assert (joined[..., -5:] == joined[:, :1, :1, -5:]).all()


@pytest.mark.parametrize("head", [row["head_cls"] for row in SEGMENTERS.values()][1:3])
def test_logits_are_float32_at_the_size_of_the_images(head):
  net = small_segmenter().net.clone(dtype=jnp.bfloat16)
  model = small_segmenter(net=net, head_cls=head)
  images = IMAGES[:, :11, :13]  # The stride does not divide these sizes.

  def shapes(model, train):
    def run(images):
      rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
      return model.init_with_output(rngs, images, train)[0]

    return jax.eval_shape(run, images)

  wanted = jax.ShapeDtypeStruct((2, 11, 13, 4), jnp.float32)
  assert shapes(model, train=False) == {"out": wanted, "aux": wanted}
  assert shapes(model, train=True) == {"out": wanted, "aux": wanted}
  assert shapes(model.clone(aux=False), train=False) == {"out": wanted}


def test_gradients_reach_both_heads_and_the_backbone():
  head = partial(DeepLabV3Head, rates=(2,), features=8)
  model = small_segmenter(head_cls=head)
  variables = variables_of(model, IMAGES)
  assert variables["params"].keys() == {"backbone", "head", "aux_head"}

  @jit_once
  @jax.grad
  def gradients(params, share):  # Of the auxiliary head in the loss, 0 or 1.
    logits, _ = model.apply(
      variables | {"params": params},
      IMAGES,
      train=True,
      mutable="batch_stats",
      rngs={"dropout": jax.random.key(0)},
    )
    losses = {key: -jax.nn.log_softmax(x)[..., 1].mean() for key, x in logits.items()}
    return (1 - share) * losses["out"] + share * losses["aux"]

  for share, own, other in ((0.0, "head", "aux_head"), (1.0, "aux_head", "head")):
    found = gradients(variables["params"], share)
    assert_reached(found[own])
    assert not any(leaf.any() for leaf in jax.tree.leaves(found[other]))
    for stage in ("stem", "stage1"):
      assert_reached(found["backbone"][stage])


def assert_reached(gradients):
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert jnp.abs(leaf).max() > 0, path


def test_kernels_of_training_dilate_beyond_the_map():
  x, head = normal(1, 3, 40, 8), DeepLabV3Head(num_classes=2, features=8)
  variables = variables_of(head, x, (3, 40))
  expected = head.apply(variables, x, (3, 40))
  with kernels.use("xla"):
    ours = jit_once(lambda x: head.apply(variables, x, (3, 40)))(x)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_classes_of_pascal_voc_are_the_background_and_20_others_in_order():
  background, *others = voc.class_names()
  assert background == "__background__"
  assert others == sorted(set(others)) and len(others) == 20


def test_an_unknown_name_and_no_classes_are_refused():
  with pytest.raises(ValueError, match=r"did you mean deeplabv3_resnet50"):
    create_segmenter("deeplab_resnet50")
  with pytest.raises(ValueError, match="num_classes=0 must be > 0"):
    create_segmenter("fcn_resnet50", 0)
