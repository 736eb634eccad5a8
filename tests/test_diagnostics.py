"""Responses and gradients of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal, variables_of

from resnet_jax import create_model
from resnet_jax.analysis.layer_responses import (
  MEASUREMENTS,
  layer_gradients,
  layer_responses,
)


def with_scale(variables, path: str, factor: float):
  def change(key_path, leaf):
    name = jax.tree_util.keystr(key_path, simple=True, separator="/")
    return leaf * factor if name == path else leaf

  return jax.tree_util.tree_map_with_path(change, variables)


@pytest.mark.parametrize("name", ["resnet8", "resnet29", "resnet18"])
def test_responses_after_batch_norm_start_at_one_and_follow_its_scale(name):
  images = normal(4, 16, 16, 3)
  model = create_model(name, 10, stem="cifar")
  variables = variables_of(model, images)
  responses = layer_responses(model, variables, images)
  depth = int(name.removeprefix("resnet"))
  paths = list(responses)
  assert len(paths) == depth - 1  # All layers but the head.
  assert paths[0] == "stem/bn"
  assert paths[1] == "stage1/block1/bn1"
  assert paths[-1] == max(p for p in paths if p.startswith(paths[-1][:-1]))
  np.testing.assert_allclose(list(responses.values()), 1, rtol=2e-2)
  variables = with_scale(variables, "params/stage1/block1/bn1/scale", 3.0)
  changed = layer_responses(model, variables, images)
  assert changed["stage1/block1/bn1"] == pytest.approx(
    3 * responses["stage1/block1/bn1"], rel=1e-5
  )
  others = [p for p in paths if p != "stage1/block1/bn1"]
  assert changed[others[0]] == pytest.approx(responses[others[0]], rel=1e-5)


def batch_of(images):
  labels = jnp.arange(len(images)) % 10
  return {"image": images, "label": labels, "mask": jnp.ones(len(images), bool)}


@pytest.mark.parametrize(("name", "flows"), [("plain8", False), ("resnet8", True)])
def test_gradients_pass_a_dead_layer_by_the_shortcut_only(name, flows):
  images = normal(4, 8, 8, 3)
  model = create_model(name)
  dead = "params/stage2/block1/bn2/scale"
  variables = with_scale(variables_of(model, images), dead, 0.0)
  gradients = layer_gradients(model, variables, batch_of(images))
  assert list(gradients) == [
    "stem/conv",
    *(f"stage{s}/block1/conv{c}" for s in (1, 2, 3) for c in (1, 2)),
  ]
  values = np.array(list(gradients.values()))
  assert (values[3:5] == 0).all()  # The dead block itself.
  assert (values[5:] > 0).all() or not flows
  assert (values[:3] > 0).all() == flows


def test_gradient_norms_add_up_to_that_of_all_kernels():
  images = normal(4, 8, 8, 3)
  model = create_model("resnet8")
  variables, batch = variables_of(model, images), batch_of(images)

  def loss(params):
    logits, _ = model.apply(
      variables | {"params": params}, images, train=True, mutable=["batch_stats"]
    )
    picked = jax.nn.log_softmax(logits)[jnp.arange(4), batch["label"]]
    return -picked.mean()

  gradient = jax.jit(jax.grad(loss))(variables["params"])
  kernels = [leaf for leaf in jax.tree.leaves(gradient) if leaf.ndim == 4]
  total = float(jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in kernels)))
  found = layer_gradients(model, variables, batch)
  assert np.linalg.norm(list(found.values())) == pytest.approx(total, rel=1e-5)


def test_measurements_are_those_that_studies_name():
  assert set(MEASUREMENTS) == {"responses", "gradients"}
