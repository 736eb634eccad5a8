"""The zoo: published sizes, names, shapes and dtypes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import MODELS, ResNet50, create_model


def shapes_of(model, size=32, channels=3):
  images = jnp.zeros((1, size, size, channels))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), images))


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def paths(tree) -> set[str]:
  flat = jax.tree_util.tree_leaves_with_path(tree)
  return {"/".join(key.key for key in path) for path, _ in flat}


@pytest.mark.parametrize(
  ("name", "shortcut", "expected"),
  [
    # torchvision's counts, and what the other shortcuts make of them.
    ("resnet18", "", 11_689_512),
    ("resnet34", "", 21_797_672),
    ("resnet50", "", 25_557_032),
    ("resnet101", "", 44_549_160),
    ("resnet152", "", 60_192_808),
    ("resnet34", "A", 21_623_848),
    ("resnet34", "C", 22_716_840),
    ("plain34", "", 21_623_848),
    ("plain18", "", 11_515_688),
    # The paper's table 6, exactly.
    ("resnet20", "", 269_722),
    ("resnet32", "", 464_154),
    ("resnet44", "", 658_586),
    ("resnet56", "", 853_018),
    ("resnet110", "", 1_727_962),
    ("resnet1202", "", 19_421_274),
    ("plain20", "", 269_722),
  ],
)
def test_parameter_counts(name, shortcut, expected):
  model = create_model(name, shortcut=shortcut)
  assert count(shapes_of(model)["params"]) == expected


def test_every_residual_net_has_a_plain_twin():
  residual = {name.removeprefix("resnet") for name in MODELS if "resnet" in name}
  assert residual == {
    name.removeprefix("plain") for name in MODELS if name.startswith("plain")
  }
  assert {"20", "32", "44", "56", "110", "1202", "18", "34"} <= residual


def test_parameter_paths():
  names = paths(shapes_of(create_model("resnet50"))["params"])
  assert {
    "stem/conv/kernel",
    "stem/bn/scale",
    "stage1/block1/conv1/kernel",
    "stage2/block4/bn3/bias",
    "stage4/block1/shortcut/conv/kernel",
    "head/kernel",
    "head/bias",
  } <= names
  assert "stage2/block2/shortcut/conv/kernel" not in names


def test_plain_and_option_a_nets_have_no_shortcut_parameters():
  for name in ("plain18", "plain20", "resnet20"):
    assert not any("shortcut" in p for p in paths(shapes_of(create_model(name))))


@pytest.mark.parametrize(
  ("name", "stem", "size", "expected"),
  [
    ("resnet18", "", 64, (2, 2, 512)),
    ("resnet50", "", 97, (4, 4, 2048)),
    ("resnet18", "cifar", 32, (4, 4, 512)),
    ("resnet20", "", 32, (8, 8, 64)),
  ],
)
def test_resolution_and_channels_before_pooling(name, stem, size, expected):
  model = create_model(name, stem=stem)
  images = jnp.zeros((1, size, size, 3))

  def last_stage():
    _, state = model.init_with_output(
      jax.random.key(0), images, capture_intermediates=True, mutable=True
    )
    stages = state["intermediates"]
    return stages[max(name for name in stages if name.startswith("stage"))]

  assert jax.eval_shape(last_stage)["__call__"][0].shape == (1, *expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_statistics_and_logits_are_float32(dtype):
  model = create_model("resnet8", 7, dtype=dtype)
  images = jnp.zeros((2, 8, 8, 3))
  variables = shapes_of(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  logits, updates = jax.eval_shape(
    lambda v: model.apply(v, images, train=True, mutable=["batch_stats"]), variables
  )
  assert logits.shape == (2, 7) and logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_compute_dtype_reaches_every_convolution():
  model = create_model("resnet8", dtype=jnp.bfloat16)
  variables = shapes_of(model)
  text = str(jax.make_jaxpr(model.apply)(variables, jnp.zeros((2, 8, 8, 3))))
  made = [line for line in text.splitlines() if "conv_general_dilated" in line]
  assert made and all("bf16[" in line.split("=")[0] for line in made)


def test_running_statistics_move_by_a_tenth():
  # torchvision's momentum; Flax's default would be a hundredth.
  model = create_model("resnet8", 3)
  images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))

  @jax.jit
  def first_update(key):
    variables = model.init(key, images)
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    return variables, apply(variables, images)[1]

  variables, updates = first_update(jax.random.key(0))
  conv = jax.lax.conv_general_dilated(
    images,
    variables["params"]["stem"]["conv"]["kernel"],
    (1, 1),
    [(1, 1)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  mean = updates["batch_stats"]["stem"]["bn"]["mean"]
  np.testing.assert_allclose(mean, 0.1 * conv.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_named_constructor():
  model = ResNet50(num_classes=10)
  assert count(shapes_of(model)["params"]) == 25_557_032 - 990 * 2049


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"name": "resnet51"}, "resnet51.*did you mean.*resnet5"),
    ({"name": "resnet50", "stem": "cfar"}, "stem='cfar'.*cifar"),
    ({"name": "resnet50", "shortcut": "D"}, "shortcut='D'.*A, B, C, none"),
    ({"name": "plain20", "zero_init_residual": True}, "zero_init_residual"),
  ],
)
def test_wrong_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    create_model(**arguments)
