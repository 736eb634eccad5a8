"""Networks work in Flax NNX through its bridge; modules accept old names of fields."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal
from flax import linen as nn
from flax import nnx

from resnet_jax import FPN, Backbone, DeepLabV3Head, FCNHead, ResNet, Segmenter
from resnet_jax.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet_jax.models.building import with_norm
from resnet_jax.models.layers import SqueezeExcite
from resnet_jax.models.norms import NORMS, BatchNorm, GroupNorm
from resnet_jax.models.shortcuts import SHORTCUTS, ProjectionShortcut
from resnet_jax.models.stems import CifarStem, DeepStem, ImageNetStem

IMAGES = normal(2, 8, 8, 3)
ToNNX = nnx.bridge.ToNNX


def net(**fields) -> ResNet:
  settings = {"stage_sizes": (1, 2), "num_classes": 3, "features": 4}
  return ResNet(**settings | {"stem_cls": CifarStem} | fields)


NETS = {
  "basic": net(),
  "bottleneck": net(block_cls=BottleneckBlock),
  "plain": net(shortcut_cls=SHORTCUTS["none"]),
  "highway": net(shortcut_cls=SHORTCUTS["highway"]),
  "pre-activation": net(block_cls=PreActBasicBlock, pre_activation=True),
  "squeeze-excite": net(block_cls=partial(BasicBlock, attention_cls=SqueezeExcite)),
  "deep stem, option D": net(stem_cls=DeepStem, shortcut_cls=SHORTCUTS["D"]),
  "scanned": net(stage_sizes=(1, 3), scan=True),
  "group norm": net(norm_cls=GroupNorm),
  "own activation": net(norm_cls=NORMS["evo"]),
  "frozen norm": net(norm_cls=NORMS["frozen"]),
}


def variables_of(module: ToNNX) -> dict:
  """Returns what Linen's `apply` takes."""
  kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
  states = {name: nnx.state(module, kind) for name, kind in kinds.items()}
  return {name: nnx.to_pure_dict(state) for name, state in states.items()}


@pytest.mark.parametrize("model", NETS.values(), ids=NETS)
def test_every_kind_of_network_goes_through_the_bridge(model):
  """Traces both modes and an optimiser; nothing is computed."""

  @nnx.eval_shape
  def bridged():
    return ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(IMAGES)

  wanted = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
  assert nnx.to_pure_dict(nnx.state(bridged, nnx.Param)) == wanted["params"]
  nnx.eval_shape(take_step, bridged)


def take_step(bridged):
  """One step of training, then the logits."""
  labels = jnp.array([0, 2])

  def loss(bridged):
    logits = bridged(IMAGES, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  optimizer = nnx.Optimizer(bridged, optax.sgd(0.1), wrt=nnx.Param)
  optimizer.update(bridged, nnx.grad(loss)(bridged))
  return bridged(IMAGES)


def test_a_network_trains_in_nnx_as_in_linen():
  model = net(stage_sizes=(1, 1))
  bridged = ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(IMAGES)
  variables = variables_of(bridged)

  @jax.jit
  def in_linen(variables):
    def loss(params):
      logits, updates = model.apply(
        variables | {"params": params}, IMAGES, train=True, mutable=["batch_stats"]
      )
      labels = jnp.array([0, 2])
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updates

    grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
    after = variables | updates | {"params": params}
    return after, model.apply(after, IMAGES)

  wanted, wanted_logits = in_linen(variables)
  logits = nnx.jit(take_step)(bridged)
  close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, variables_of(bridged), wanted)
  close(logits, wanted_logits)


PARTS = {
  **{
    cls.__name__: (cls(8), IMAGES)
    for cls in (
      *(BasicBlock, BottleneckBlock, PreActBasicBlock, PreActBottleneckBlock),
      *(ImageNetStem, DeepStem, CifarStem),
    )
  },
  "squeeze-excite": (BasicBlock(8, attention_cls=SqueezeExcite), IMAGES),
  "shortcut": (ProjectionShortcut(8, 2), IMAGES, normal(2, 4, 4, 8)),
  "highway": (SHORTCUTS["highway"](8, 2), IMAGES, normal(2, 4, 4, 8)),
  "backbone": (Backbone(net()), IMAGES),
  "pyramid": (FPN(4), {"c2": normal(1, 4, 4, 2), "c3": normal(1, 2, 2, 3)}),
  "head": (FCNHead(3), IMAGES, (16, 16)),
  "scales": (DeepLabV3Head(3, (2,), 4), IMAGES, (16, 16)),
  "segmenter": (Segmenter(net(), 3, output_stride=None), IMAGES),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_parts_of_a_network_go_through_the_bridge(part):
  module, *inputs = part
  bridged = ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(*inputs)
  variables = variables_of(bridged)
  wanted = module.apply(variables, *inputs)
  jax.tree.map(np.testing.assert_array_equal, bridged(*inputs), wanted)


@pytest.mark.parametrize(
  ("cls", "old"),
  [
    *((ResNet, name) for name in ("block", "stem", "norm", "shortcut")),
    *((BottleneckBlock, name) for name in ("conv", "norm", "shortcut", "attention")),
    *((DeepStem, "conv"), (ProjectionShortcut, "norm"), (FCNHead, "norm")),
  ],
)
def test_a_field_is_taken_by_its_old_name_with_a_warning(cls, old):
  def part():
    pass

  arguments = {ResNet: ((1,),), ProjectionShortcut: (8, 2)}.get(cls, (8,))
  with pytest.warns(DeprecationWarning, match=f"'{old}' of .* is now '{old}_cls'"):
    module = cls(*arguments, **{old: part})
  assert getattr(module, f"{old}_cls") is part
  with pytest.warns(DeprecationWarning, match=f"'{old}' of {cls.__name__}"):
    module = cls(*arguments).clone(**{old: part})
  assert getattr(module, f"{old}_cls") is part
  with pytest.warns(DeprecationWarning, match=f"'{old}' of {cls.__name__}"):
    assert getattr(module, old) is part
  with pytest.raises(AttributeError, match="other"):
    module.other  # noqa: B018
  with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
    cls(*arguments, other=part)


def test_an_own_network_may_still_call_its_norm_by_the_old_name():
  class Own(nn.Module):
    norm: type = BatchNorm

  with pytest.warns(DeprecationWarning, match="'norm' of Own is now 'norm_cls'"):
    changed = with_norm(Own(), "bn_scope", groups=2)
  assert changed.norm().groups == 2
