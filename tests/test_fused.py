"""A folded network computes the same. On one CPU it needs only a few fused calls."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import variables_of
from flax import linen as nn

from resnet_jax import kernels
from resnet_jax.kernels import conv, native
from resnet_jax.models import folding
from resnet_jax.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet_jax.models.folding import fold_batch_norm
from resnet_jax.models.layers import Conv, SqueezeExcite, StandardizedConv
from resnet_jax.models.norms import NORMS, BatchNorm
from resnet_jax.models.pooling import blur_pool
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.scan_layout import to_named, to_scanned
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEMS, CifarStem, DeepStem
from resnet_jax.models.summary import list_layers
from resnet_jax.runtime import compilation

needs_compiler = pytest.mark.skipif(
  bool(native.why_not_loaded()), reason="needs a C++ compiler"
)
CHOICES = ["plain", "xla", pytest.param("native", marks=needs_compiler)]

# Each row has changes to a network of two basic blocks with a CIFAR stem, and three
# numbers: norm scales after folding, norm scales before, and fused calls after folding.
NETS = {
  "basic": ({}, 0, 6, 6),
  "bottleneck": ({"block_cls": BottleneckBlock}, 0, 9, 9),
  # `nn.scan` traces its block twice.
  "scan": ({"stage_sizes": (3, 1), "scan": True}, 0, 8, 10),
  "deep stem": ({"stem_cls": DeepStem, "features": 32}, 0, 8, 8),
  "A": ({"shortcut_cls": SHORTCUTS["A"]}, 0, 5, 5),
  "D": ({"shortcut_cls": SHORTCUTS["D"]}, 0, 6, 6),
  "highway": ({"shortcut_cls": SHORTCUTS["highway"]}, 0, 6, 6),
  "none": ({"shortcut_cls": SHORTCUTS["none"]}, 0, 5, 5),
  "squeeze-excite": (
    {"block_cls": partial(BasicBlock, attention_cls=SqueezeExcite)},
    0,
    6,
    6,
  ),
  "anti-aliased": (
    {"block_cls": partial(BasicBlock, anti_alias=blur_pool)},
    0,
    6,
    6,
  ),
  "convolution for max-pool": (
    {"stem_cls": STEMS["deep_conv"], "features": 32},
    0,
    9,
    9,
  ),
  "standardised": ({"conv_cls": StandardizedConv}, 6, 6, 0),
  "evo": ({"norm_cls": NORMS["evo"]}, 6, 6, 0),
  "frozen": ({"norm_cls": NORMS["frozen"]}, 0, 6, 6),
  "group": ({"norm_cls": NORMS["group"]}, 6, 6, 0),
  # The first norm of each block and the last norm do not directly follow a convolution.
  "pre-activation": ({"block_cls": PreActBasicBlock, "pre_activation": True}, 3, 5, 2),
  "pre-activation 2": (
    {"block_cls": PreActBottleneckBlock, "pre_activation": True},
    3,
    7,
    4,
  ),
  # There is no native kernel for a 3x3 convolution of several groups.
  "groups": ({"block_cls": partial(BottleneckBlock, groups=2)}, 0, 9, 7),
}


def net(**changes):
  settings = {"stage_sizes": (1, 1), "features": 16, "stem_cls": CifarStem}
  return ResNet(**settings | {"num_classes": 4} | changes)


def images_of(size=16):
  return jax.random.normal(jax.random.key(0), (2, size, size, 3))


def assert_close(ours, expected):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(ours, expected, atol=2e-5 * scale, rtol=0)


def count_scales(variables) -> int:
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  return sum(path[-1].key == "scale" for path, _ in leaves)


@pytest.fixture
def fused(monkeypatch):
  """Returns a list to which each fused call of the test is added."""
  calls = []

  def count(*args):
    calls.append(args)
    return call(*args)

  call = conv._fused_conv2d
  monkeypatch.setattr(conv, "_fused_conv2d", count)
  return calls


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("changes", "left", "norms", "calls"), NETS.values(), ids=NETS)
def test_logits_are_the_same(fused, changes, left, norms, calls, choice):
  model, images = net(**changes), images_of()
  variables = variables_of(model, images, spread=0.3)
  assert count_scales(variables) == norms
  expected = compilation.jit_once(model.apply)(variables, images)
  folded, fewer = fold_batch_norm(model, variables)
  assert count_scales(fewer) == left
  ours = compilation.jit_once(kernels.traced_with(choice, folded.apply))(fewer, images)
  assert len(fused) == (calls if choice == "native" else 0)
  assert_close(ours, expected)


@pytest.mark.parametrize("layout", [to_named, to_scanned])
@pytest.mark.parametrize("scan", [False, True])
def test_either_layout_of_variables_is_folded(scan, layout):
  model, images = net(stage_sizes=(3, 2), scan=scan), images_of(8)
  variables = layout(variables_of(model, images, spread=0.3))
  folded, fewer = fold_batch_norm(model, variables)
  assert count_scales(fewer) == 0
  assert_close(folded.apply(fewer, images), model.apply(variables, images))


def test_a_norm_that_kept_its_scale_still_multiplies(monkeypatch):
  find = folding._find_norms
  monkeypatch.setattr(folding, "_find_norms", lambda *args: dict.fromkeys(find(*args)))
  model, images = net(), images_of(8)
  variables = variables_of(model, images, spread=0.3)
  folded, same = fold_batch_norm(model, variables)
  assert_close(folded.apply(same, images), model.apply(variables, images))


@needs_compiler
@pytest.mark.parametrize(
  ("changes", "train"),
  [
    ({"block_cls": BottleneckBlock}, False),
    ({"stage_sizes": (3,), "norm_cls": NORMS["frozen"], "scan": True}, False),
    ({"stage_sizes": (3,), "norm_cls": NORMS["frozen"], "scan": True}, True),
  ],
)
def test_gradients_are_the_same(fused, changes, train):
  """Heat maps need the gradients of a network in evaluation mode."""
  model, x = net(**changes), images_of(8)
  variables = variables_of(model, x, spread=0.3)

  def gradients(choice, fold):
    def loss(params, x):
      net, values = model, variables | {"params": params}
      if fold:
        net, values = fold_batch_norm(net, values)
      return jnp.sum(jnp.sin(net.apply(values, x, train=train)))

    function = kernels.traced_with(choice, jax.grad(loss, argnums=(0, 1)))
    return jax.jit(function)(variables["params"], x)

  expected = gradients("plain", fold=False)
  jax.tree.map(assert_close, gradients("native", fold=False), expected)
  assert not fused
  if not train:
    jax.tree.map(assert_close, gradients("native", fold=True), expected)
    assert fused


def test_layers_whose_results_are_asked_for_are_called(fused):
  model, x = net(), images_of()
  variables = variables_of(model, x, spread=0.3)
  with kernels.use("native"):
    _, state = model.apply(
      variables, x, capture_intermediates=True, mutable=["intermediates"]
    )
  block = state["intermediates"]["stage1"]["block1"]
  assert {"conv1", "bn1", "conv2", "bn2"} <= set(block)
  assert not fused


def test_a_summary_has_all_layers(fused):
  model = ResNet((1,), features=16)
  expected = list_layers(model, (16, 16, 3))
  with kernels.use("native"):
    assert list_layers(model, (16, 16, 3)) == expected
  assert not fused


class Twice(Conv):
  @nn.compact
  def __call__(self, x):
    return 2 * super().__call__(x)


class Half(SHORTCUTS["B"]):
  def __call__(self, x, residual):
    return super().__call__(x, residual / 2)


class Named(Conv):
  """Overrides nothing of its parent."""


def block_of(layer):
  """Returns a basic block that uses `layer` instead of the network's convolutions."""
  return lambda *args, **kwargs: BasicBlock(*args, **kwargs | {"conv_cls": layer})


def evaluate(model, variables, x, choice, fold):
  if fold:
    model, variables = fold_batch_norm(model, variables)
  with kernels.use(choice):
    return model.apply(variables, x), variables


@pytest.mark.parametrize("choice", CHOICES)
def test_other_layers_are_called(fused, choice):
  """A layer that somebody derived from ours may do more."""
  x = images_of()
  whole, twice, named = (
    net(block_cls=block_of(layer)) for layer in (Conv, Twice, Named)
  )
  variables = variables_of(whole, x, spread=0.3)
  expected, _ = evaluate(twice, variables, x, "plain", fold=False)
  ours, folded = evaluate(twice, variables, x, choice, fold=True)
  assert_close(ours, expected)
  # Only the norms of the stem and the shortcut follow a convolution of ours.
  assert count_scales(folded) == 4
  assert len(fused) == (2 if choice == "native" else 0)
  plain, folded = evaluate(named, variables, x, choice, fold=True)
  assert count_scales(folded) == 0
  assert len(fused) == (8 if choice == "native" else 0)
  assert jnp.abs(plain - ours).max() > 0.1


@pytest.mark.parametrize("choice", CHOICES)
def test_other_shortcuts_are_called(fused, choice):
  x = images_of()
  whole, half = (net(shortcut_cls=shortcut) for shortcut in (SHORTCUTS["B"], Half))
  variables = variables_of(whole, x, spread=0.3)
  expected, _ = evaluate(half, variables, x, "plain", fold=False)
  ours, folded = evaluate(half, variables, x, choice, fold=True)
  assert_close(ours, expected)
  assert count_scales(folded) == 0
  plain, _ = evaluate(whole, variables, x, "plain", fold=False)
  assert jnp.abs(plain - ours).max() > 0.1
  if choice == "native":
    # No ReLU is fused in front of the derived shortcut or after a projection.
    relu = [relu for *_, relu in fused]
    assert relu == [True, True, False, True, False, False]


@pytest.mark.parametrize(
  "path", [("conv1", "kernel"), ("bn1", "scale"), ("bn2", "bias")]
)
def test_wrong_variables_are_an_error(path):
  norm = partial(NORMS["batch"], use_running_average=True)
  block, x = BasicBlock(16, norm_cls=norm), jnp.ones((1, 8, 8, 16))
  variables = variables_of(block, x, spread=0.3)
  *parents, name = path
  values = variables["params"]
  for parent in parents:
    values = values[parent]
  values[name] = jnp.ones((3, 3, 16, 32) if name == "kernel" else 32)
  with (
    kernels.use("native"),
    pytest.raises(flax.errors.FlaxError, match="|".join(path)),
  ):
    block.apply(variables, x)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("path", [("conv1", "kernel"), ("bn2", "bias")])
def test_wrong_folded_variables_are_an_error(path, choice):
  model, x = net(), images_of()
  folded, variables = fold_batch_norm(model, variables_of(model, x, spread=0.3))
  layer, name = path
  shape = (3, 3, 16, 32) if name == "kernel" else (32,)
  variables["params"]["stage1"]["block1"][layer][name] = jnp.ones(shape)
  with kernels.use(choice), pytest.raises((TypeError, ValueError)):
    folded.apply(variables, x)


class Doubled(BatchNorm):
  """Overrides the call, but not how the norm is folded."""

  @nn.compact
  def __call__(self, x):
    return 2 * super().__call__(x)


class DoubledAffine(Doubled):
  """Also overrides how the norm is folded."""

  def to_affine(self, variables):
    return tuple(2 * part for part in super().to_affine(variables))


class OwnNormBlock(BasicBlock):
  """Has a batch norm that is not the network's."""

  @nn.compact
  def __call__(self, x, noise=None):
    y = super().__call__(x, noise)
    return y + BatchNorm(use_running_average=True, name="own")(y)


@pytest.mark.parametrize(
  ("changes", "is_folded", "kept"),
  [
    ({"norm_cls": Doubled}, False, 6),
    ({"norm_cls": DoubledAffine}, True, 0),
    ({"block_cls": OwnNormBlock}, True, 2),
    ({"block_cls": OwnNormBlock, "stage_sizes": (3,)}, True, 3),
    ({"block_cls": OwnNormBlock, "stage_sizes": (3,), "scan": True}, True, 3),
  ],
)
def test_only_what_is_known_is_folded(changes, is_folded, kept):
  model, images = net(**changes), images_of()
  variables = to_named(variables_of(model, images, spread=0.3))
  folded, fewer = fold_batch_norm(model, variables)
  assert (folded is not model) == is_folded
  assert len(jax.tree.leaves(fewer["batch_stats"])) == 2 * kept
  assert_close(folded.apply(fewer, images), model.apply(variables, images))
