"""RandAugment and TrivialAugment: each operation, their ranges, and the draws."""

from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.data.images.auto_augment import (
  LAST_BIN,
  operations,
  rand_augment,
  trivial_augment,
)

# Values 1 to 254: black is the fill colour, and solarize at bin 0 would invert white.
IMAGE = np.random.default_rng(0).integers(1, 255, (32, 32, 3), np.uint8)
TABLE = operations(32, 32)
POLICIES = [rand_augment, trivial_augment]
ENHANCERS = {
  "brightness": ImageEnhance.Brightness,
  "color": ImageEnhance.Color,
  "contrast": ImageEnhance.Contrast,
  "sharpness": ImageEnhance.Sharpness,
}


def apply(name: str, value: float, image: np.ndarray = IMAGE) -> np.ndarray:
  return np.array(TABLE[name].apply(Image.fromarray(image), value))


def pixels(*rows: list[int]) -> np.ndarray:
  """A grey image from its rows."""
  return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=2)


class Draws(np.random.Generator):
  """Stands in for a generator: returns the given integers one after the other."""

  def __init__(self, *values):
    super().__init__(np.random.PCG64())
    self.values = list(values)

  def integers(self, high, size=None):
    value = self.values.pop(0)
    assert np.max(value) < high
    return value


@pytest.mark.parametrize("name", sorted(TABLE.keys() - {"autocontrast", "equalize"}))
def test_strength_zero_is_the_identity(name):
  i = list(TABLE).index(name)
  draws = [1] * TABLE[name].signed  # 1 draws the negative sign
  out = rand_augment(IMAGE, Draws([i], *draws), num_ops=1, magnitude=0)
  np.testing.assert_array_equal(out, IMAGE)
  out = trivial_augment(IMAGE, Draws(i, 0, *draws))
  np.testing.assert_array_equal(out, IMAGE)


def test_solarize_at_strength_zero_inverts_only_white():
  start, _ = TABLE["solarize"].rand
  out = apply("solarize", start, pixels([0, 1, 254, 255]))
  np.testing.assert_array_equal(out, pixels([0, 1, 254, 0]))


def test_solarize_inverts_values_at_or_above_the_threshold():
  out = apply("solarize", 178.5, pixels([0, 178, 179, 255]))
  np.testing.assert_array_equal(out, pixels([0, 178, 76, 0]))
  np.testing.assert_array_equal(apply("solarize", 0), 255 - IMAGE)


@pytest.mark.parametrize("shift", [3, -3])
def test_translation_moves_whole_pixels_and_fills_with_black(shift):
  expected = np.zeros_like(IMAGE)
  to, of = (slice(3, None), slice(-3)) if shift > 0 else (slice(-3), slice(3, None))
  expected[:, to] = IMAGE[:, of]
  fraction = 0.9 * np.sign(shift)  # rounded towards zero
  np.testing.assert_array_equal(apply("translate_x", shift + fraction), expected)
  down = apply("translate_y", shift + fraction, IMAGE.swapaxes(0, 1))
  np.testing.assert_array_equal(down, expected.swapaxes(0, 1))


def test_shear_is_about_the_top_left_corner_and_fills_with_black():
  image = pixels([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12])
  # The centre of row y is y + 1/2, and it moves by 1/2, 3/2, 5/2 pixels, rounded down.
  left = pixels([1, 2, 3, 4], [6, 7, 8, 0], [11, 12, 0, 0])
  right = pixels([1, 2, 3, 4], [0, 5, 6, 7], [0, 0, 9, 10])
  for slope, expected in ((0.99, left), (-0.99, right)):
    np.testing.assert_array_equal(apply("shear_x", slope, image), expected)
    np.testing.assert_array_equal(
      apply("shear_y", slope, image.swapaxes(0, 1)), expected.swapaxes(0, 1)
    )


def test_rotation_by_quarter_turns_equals_rot90():
  np.testing.assert_array_equal(apply("rotate", 90), np.rot90(IMAGE))
  np.testing.assert_array_equal(apply("rotate", -90), np.rot90(IMAGE, -1))


def test_rotation_reads_the_nearest_pixels_and_fills_the_corners_with_black():
  out = apply("rotate", 45)
  assert not out[[0, 0, -1, -1], [0, -1, 0, -1]].any()
  colours = {tuple(colour) for colour in out.reshape(-1, 3)}
  assert colours - {tuple(colour) for colour in IMAGE.reshape(-1, 3)} == {(0, 0, 0)}


@pytest.mark.parametrize("name", ENHANCERS)
@pytest.mark.parametrize("value", [-0.9, 0.5])
def test_enhancements_blend_with_factor_one_plus_value(name, value):
  expected = ENHANCERS[name](Image.fromarray(IMAGE)).enhance(1 + value)
  np.testing.assert_array_equal(apply(name, value), expected)


def test_brightness_multiplies():
  out = apply("brightness", 0.5, pixels([0, 10, 100, 200]))
  np.testing.assert_array_equal(out, pixels([0, 15, 150, 255]))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_posterize_keeps_the_high_bits(bits):
  np.testing.assert_array_equal(
    apply("posterize", bits), IMAGE >> (8 - bits) << (8 - bits)
  )


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_histogram_operations_are_those_of_pillow(name):
  dim = IMAGE // 4 + 50
  expected = np.array(getattr(ImageOps, name)(Image.fromarray(dim)))
  assert (expected != dim).any()
  np.testing.assert_array_equal(apply(name, 0, dim), expected)


def test_values_at_the_last_bin_are_those_of_torchvision():
  table = operations(width=331, height=662)
  assert {name: (op.rand[1], op.wide[1]) for name, op in table.items()} == {
    "identity": (0, 0),
    "shear_x": (0.3, 0.99),
    "shear_y": (0.3, 0.99),
    "translate_x": (150, 32),
    "translate_y": (300, 32),
    "rotate": (30, 135),
    "brightness": (0.9, 0.99),
    "color": (0.9, 0.99),
    "contrast": (0.9, 0.99),
    "sharpness": (0.9, 0.99),
    "posterize": (4, 2),
    "solarize": (0, 0),
    "autocontrast": (0, 0),
    "equalize": (0, 0),
  }


@pytest.mark.parametrize("strength", range(LAST_BIN + 1))
def test_posterize_rounds_the_removed_bits(strength):
  i = list(TABLE).index("posterize")
  out = rand_augment(IMAGE, Draws([i]), num_ops=1, magnitude=strength)
  expected = apply("posterize", 8 - round(strength / (30 / 4)))
  np.testing.assert_array_equal(out, expected)
  expected = apply("posterize", 8 - round(strength / (30 / 6)))
  np.testing.assert_array_equal(trivial_augment(IMAGE, Draws(i, strength)), expected)


def test_a_bin_of_a_signed_operation_gives_its_value_with_either_sign():
  i = list(TABLE).index("rotate")
  for negate, turns in ((0, 1), (1, -1)):
    out = trivial_augment(IMAGE, Draws(i, 20, negate))  # 135 degrees * 20 / 30
    np.testing.assert_array_equal(out, np.rot90(IMAGE, turns))


def test_operations_are_applied_one_after_the_other():
  rotate, posterize = (list(TABLE).index(name) for name in ("rotate", "posterize"))
  out = rand_augment(IMAGE, Draws([posterize, rotate], 0), num_ops=2, magnitude=30)
  np.testing.assert_array_equal(out, apply("rotate", 30, apply("posterize", 4)))


@pytest.mark.parametrize(
  "policy, space, strengths",
  [
    (partial(rand_augment, num_ops=1, magnitude=15), "rand", [15]),
    (trivial_augment, "wide", range(LAST_BIN + 1)),
  ],
)
def test_every_operation_and_both_signs_occur(policy, space, strengths):
  sources = {}
  for name, op in TABLE.items():
    start, stop = getattr(op, space)
    for strength in strengths:
      value = start + (stop - start) * strength / LAST_BIN
      for sign in (1, -1) if op.signed else (1,):
        sources.setdefault(apply(name, sign * value).tobytes(), (name, sign))
  rng = np.random.default_rng(0)
  seen = {sources[policy(IMAGE, rng).tobytes()] for _ in range(800)}
  assert seen == set(sources.values())
  assert {name for name, _ in seen} == set(TABLE)
  assert {name for name, sign in seen if sign < 0} == {
    name for name, op in TABLE.items() if op.signed
  }


@pytest.mark.parametrize("policy", POLICIES)
def test_the_seed_decides_the_result(policy):
  first, again, other = (
    [policy(IMAGE, rng) for _ in range(8)]
    for rng in map(np.random.default_rng, (1, 1, 2))
  )
  np.testing.assert_array_equal(first, again)
  assert (np.array(first) != np.array(other)).any()


@pytest.mark.parametrize("policy", POLICIES)
def test_shape_dtype_and_input_are_kept(policy):
  image = IMAGE[:20].copy()
  image.flags.writeable = False
  for seed in range(100):
    out = policy(image, np.random.default_rng(seed))
    assert out.shape == (20, 32, 3)
    assert out.dtype == np.uint8
    assert out.flags.writeable and not np.shares_memory(out, image)
  np.testing.assert_array_equal(image, IMAGE[:20])


@pytest.mark.parametrize("policy", POLICIES)
def test_strides_do_not_matter(policy):
  view = IMAGE[::-1, 3::2].swapaxes(0, 1)
  assert not view.flags.c_contiguous
  for seed in range(30):
    np.testing.assert_array_equal(
      policy(view, np.random.default_rng(seed)),
      policy(view.copy(order="C"), np.random.default_rng(seed)),
    )


@pytest.mark.parametrize("magnitude", [-1, 31])
def test_magnitude_out_of_range_is_refused(magnitude):
  with pytest.raises(ValueError, match=f"from 0 to 30, got {magnitude}"):
    rand_augment(IMAGE, np.random.default_rng(0), magnitude=magnitude)


def test_negative_num_ops_is_refused():
  with pytest.raises(ValueError, match="num_ops must be >= 0, got -1"):
    rand_augment(IMAGE, np.random.default_rng(0), num_ops=-1)
