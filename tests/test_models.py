"""The zoo: published sizes, names, shapes and dtypes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from resnet_jax import MODELS, ResNet50, create_model
from resnet_jax.runtime.compilation import jit_once


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
    # torchvision's counts, and the counts with other shortcuts.
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
    # torchvision's counts.
    ("resnext50_32x4d", "", 25_028_904),
    ("resnext101_32x8d", "", 88_791_336),
    ("resnext101_64x4d", "", 83_455_272),
    ("wide_resnet50_2", "", 68_883_240),
    ("wide_resnet101_2", "", 126_886_696),
    ("resnetv1_50", "", 25_557_032),
    # The counts of timm's resnetv2, and of Keras's ResNet50V2, 101 and 152 without the
    # biases of their convolutions.
    ("resnetv2_50", "", 25_549_352),
    ("resnetv2_101", "", 44_541_480),
    ("resnetv2_152", "", 60_185_128),
    # timm's counts.
    ("resnet50c", "", 25_576_264),
    ("resnet50d", "", 25_576_264),
    ("seresnet50", "", 28_088_024),
    # Hu et al. 2017 as counted by osmr/imgclsmob.
    ("seresnet18", "", 11_779_624),
    ("seresnet34", "", 21_960_416),
    ("seresnet101", "", 49_326_872),
    ("seresnet152", "", 66_821_848),
    ("resnetv2_164", "", 1_703_258),
    ("resnetv2_1001", "", 10_327_706),
    ("wide_resnet28_10", "", 36_479_194),
  ],
)
def test_parameter_counts(name, shortcut, expected):
  model = create_model(name, shortcut=shortcut)
  assert count(shapes_of(model)["params"]) == expected


@pytest.mark.parametrize(
  ("name", "millions"),
  # The first is from fb.resnet.torch, the second from Zagoruyko & Komodakis 2016, table
  # 4, and the third from He et al. 2016, section 5, table 4.
  [("resnetv2_200", 64.7), ("wide_resnet16_8", 11.0), ("resnetv2_164", 1.7)],
)
def test_rounded_parameter_counts(name, millions):
  assert round(count(shapes_of(create_model(name))["params"]) / 1e6, 1) == millions


@pytest.mark.parametrize("kind", ["plain", "highway"])
def test_every_net_of_the_paper_has_a_twin(kind):
  twins = {name.removeprefix(kind) for name in MODELS if name.startswith(kind)}
  assert {"20", "32", "44", "56", "110", "1202", "18", "34", "50"} <= twins
  assert {f"resnet{depth}" for depth in twins} <= set(MODELS)


@pytest.mark.parametrize(
  "name", ["resnet50", "resnetv1_50", "resnext50_32x4d", "wide_resnet50_2"]
)
def test_expansion_and_width_are_fields(name):
  model = create_model(name, 10)
  block = partial(model.block_cls, expansion=2)
  shapes = shapes_of(model.clone(features=32, block_cls=block))["params"]
  assert shapes["head"]["kernel"].shape == (2 * 8 * 32, 10)


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
  images = normal(4, 8, 8, 3, seed=1)

  @jit_once
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
    ({"name": "resnet50", "shortcut": "E"}, "shortcut='E'.*A, B, C, D, B3x3, highway"),
    ({"name": "plain20", "zero_init_residual": True}, "zero_init_residual"),
    ({"name": "plain20", "stochastic_depth": 0.1}, "stochastic_depth"),
    ({"name": "resnet20", "num_classes": 0}, "num_classes=0 must be > 0"),
    (
      {"name": "resnet20", "zero_init_residual": True, "norm": "frozen"},
      "zero_init_residual=True with config.model.norm='frozen'",
    ),
    ({"name": "resnet20", "stochastic_depth": 1.0}, r"stochastic_depth=1\.0.*\[0, 1\)"),
    ({"name": "resnet20", "norm": "layer"}, "norm='layer'.*batch"),
  ],
)
def test_wrong_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    create_model(**arguments)


def test_the_table_of_architectures_cannot_be_changed():
  with pytest.raises(TypeError, match="does not support item assignment"):
    MODELS["mine"] = MODELS["resnet18"]
