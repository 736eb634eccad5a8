"""Augmentation and normalisation."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import pixels
from PIL import Image, ImageEnhance

from resnet_jax.data.batches import color_and_erasing
from resnet_jax.data.batches.color_and_erasing import color_jitter, random_erasing
from resnet_jax.data.batches.mixup_cutmix import cutmix, mix, mixup
from resnet_jax.data.batches.preprocess import (
  normalize,
  preprocess,
  random_crop,
  random_flip,
)
from resnet_jax.runtime.mesh import batch_sharding, create_mesh

IMAGES = pixels(64, 6, 6, 3, low=1)
PHOTOS = pixels(16, 8, 8, 3)
FLOATS = 0.5 + pixels(16, 8, 8, 3, seed=1) / 512
TARGETS = jnp.eye(16)  # each image has a class of its own


@jax.jit
def augment_all(key, images, targets):
  """Applies everything, compiled once; also returns the images before mixing."""
  images = color_jitter(key, images, 0.4, 0.4, 0.4, 0.1)
  images = random_erasing(key, normalize(images, (0.5,), (0.5,)), 0.5)
  return images, *mix(key, images, targets, 1.0, 1.0)


def test_crop_without_padding_is_the_identity():
  np.testing.assert_array_equal(random_crop(jax.random.key(0), IMAGES, 0), IMAGES)


def test_crop_shifts_each_image_and_fills_with_zeros():
  crops = np.asarray(random_crop(jax.random.key(0), IMAGES, 1))
  padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
  seen = set()
  for crop, image in zip(crops, padded, strict=True):
    offsets = [
      (i, j)
      for i in range(3)
      for j in range(3)
      if np.array_equal(crop, image[i : i + 6, j : j + 6])
    ]
    assert len(offsets) == 1
    seen |= set(offsets)
  assert len(seen) == 9  # every shift occurs


def test_flip_mirrors_about_half_of_the_images():
  flipped = np.asarray(random_flip(jax.random.key(0), IMAGES))
  mirrored = np.array(
    [
      np.array_equal(b, a[:, ::-1])
      for a, b in zip(np.asarray(IMAGES), flipped, strict=True)
    ]
  )
  same = np.array(
    [np.array_equal(a, b) for a, b in zip(np.asarray(IMAGES), flipped, strict=True)]
  )
  assert (mirrored ^ same).all()
  assert 20 <= mirrored.sum() <= 44


def test_normalize_gives_zero_mean_and_unit_variance():
  scaled = np.asarray(IMAGES) / 255
  mean, std = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
  out = normalize(IMAGES, mean, std)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, (scaled - mean) / std, atol=1e-5)


def test_default_normalization_is_from_minus_one_to_one():
  ends = jnp.array([0, 255], jnp.uint8).reshape(1, 1, 2, 1)
  np.testing.assert_allclose(
    normalize(ends, (0.5,), (0.5,)).ravel(), [-1, 1], atol=1e-6
  )


def test_evaluation_sees_the_images_as_they_are():
  settings = {"mean": (0.5,), "std": (0.5,)}
  out = preprocess(IMAGES, padding=2, flip=True, **settings)
  np.testing.assert_array_equal(out, normalize(IMAGES, **settings))


def test_same_key_same_images():
  settings = {"padding": 2, "flip": True, "mean": (0.5,), "std": (0.5,)}
  a, b, c = (preprocess(IMAGES, jax.random.key(k), **settings) for k in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


@pytest.mark.parametrize(
  ("op", "enhance"),
  [
    (color_and_erasing._adjust_brightness, ImageEnhance.Brightness),
    (color_and_erasing._adjust_contrast, ImageEnhance.Contrast),
    (color_and_erasing._adjust_saturation, ImageEnhance.Color),
  ],
)
def test_colours_agree_with_pil(op, enhance):
  factors = np.linspace(0.5, 1.5, 16, dtype=np.float32)
  ours = op(PHOTOS.astype(jnp.float32), jnp.asarray(factors).reshape(16, 1, 1, 1))
  images = [Image.fromarray(image) for image in np.asarray(PHOTOS)]
  pil = [enhance(image).enhance(f) for image, f in zip(images, factors, strict=True)]
  # PIL truncates to whole grey levels, so it is half a level too dark on average.
  np.testing.assert_allclose(ours, np.stack(pil) + 0.5, atol=1.01)


def test_hue_agrees_with_colorsys():
  images = PHOTOS.at[0].set(77).at[1, ..., 2].set(0)  # a grey one, and saturated ones
  turns = np.linspace(-0.5, 0.5, 16, dtype=np.float32)
  ours = color_and_erasing._shift_hue(
    images.astype(jnp.float32), jnp.asarray(turns).reshape(16, 1, 1, 1)
  )

  def shift(pixel, turn):
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    return np.multiply(255, colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))

  pixels = np.asarray(images).reshape(-1, 3)
  expected = [shift(*pair) for pair in zip(pixels, turns.repeat(64), strict=True)]
  np.testing.assert_allclose(ours, np.reshape(expected, images.shape), atol=1e-3)


def test_a_third_of_a_turn_makes_red_green_or_blue():
  red = jnp.zeros((16, 8, 8, 3)).at[..., 0].set(200)
  turns = jnp.linspace(-1 / 3, 1 / 3, 16).reshape(16, 1, 1, 1)
  out = color_and_erasing._shift_hue(red, turns)
  np.testing.assert_allclose(out[0, 0, 0], [0, 0, 200], atol=1e-3)
  np.testing.assert_allclose(out[-1, 0, 0], [0, 200, 0], atol=1e-3)


def test_each_image_has_its_own_factor_within_the_strength():
  grey = jnp.full((16, 8, 8, 3), 100, jnp.uint8)
  out = np.asarray(color_jitter(jax.random.key(0), grey, 0.5, 0, 0))[:, 0, 0, 0]
  assert len(set(out)) == 16
  assert 50 <= out.min() < 75
  assert 125 < out.max() <= 150


def test_colours_stay_in_range():
  out = color_jitter(jax.random.key(0), PHOTOS, 2.0, 2.0, 2.0, 0.5)
  assert out.dtype == jnp.float32
  assert out.min() == 0
  assert out.max() == 255


def test_strength_zero_is_the_identity():
  key = jax.random.key(0)
  np.testing.assert_array_equal(color_jitter(key, PHOTOS, 0, 0, 0), PHOTOS)
  np.testing.assert_array_equal(random_erasing(key, FLOATS, 0.0), FLOATS)
  for images, targets in (
    mixup(key, FLOATS, TARGETS, 0.0),
    cutmix(key, FLOATS, TARGETS, 0.0),
    mix(key, FLOATS, TARGETS, 0.0, 0.0),
  ):
    np.testing.assert_array_equal(images, FLOATS)
    np.testing.assert_array_equal(targets, TARGETS)


def test_some_images_lose_one_rectangle_within_scale_and_ratio():
  scale, ratio = (0.1, 0.3), (0.5, 2.0)
  erased = np.asarray(random_erasing(jax.random.key(0), FLOATS, 0.5, scale, ratio))
  corners = []
  for before, after in zip(np.asarray(FLOATS), erased, strict=True):
    rows, columns = np.where((after == 0).all(-1))
    expected = before.copy()
    if rows.size:
      expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 0
      height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
      # The sides were rounded.
      assert (height - 0.5) * (width - 0.5) <= scale[1] * 64
      assert (height + 0.5) * (width + 0.5) >= scale[0] * 64
      assert (height - 0.5) / (width + 0.5) <= ratio[1]
      assert (height + 0.5) / (width - 0.5) >= ratio[0]
      corners.append((rows.min(), columns.min()))
    np.testing.assert_array_equal(after, expected)
  assert 4 <= len(corners) <= 12
  assert len(set(corners)) > 2


def test_erasing_clips_a_rectangle_that_does_not_fit():
  erased = random_erasing(jax.random.key(0), FLOATS, 1.0, (0.5, 0.5), (4.0, 4.0))
  # The box has sqrt(0.5 * 64) * 2 rows, of which 8 are in the image, and
  # sqrt(0.5 * 64) / 2 columns.
  np.testing.assert_array_equal((erased == 0).all(-1).sum((1, 2)), 8 * 3)


def test_mixup_averages_images_as_it_averages_targets():
  weights = set()
  for seed in range(4):
    images, targets = mixup(jax.random.key(seed), FLOATS, TARGETS, 1.0)
    weight = targets[0, 0]
    weights.add(float(weight))
    for out, given in ((images, FLOATS), (targets, TARGETS)):
      expected = weight * given + (1 - weight) * jnp.roll(given, 1, axis=0)
      np.testing.assert_allclose(out, expected, atol=1e-6)
  assert len(weights) == 4
  assert 0 <= min(weights) < max(weights) <= 1


def test_cutmix_weighs_targets_by_the_pixels_of_a_box():
  shares = set()
  for seed in range(6):
    images, targets = cutmix(jax.random.key(seed), FLOATS, TARGETS, 1.0)
    foreign = np.asarray((images != FLOATS).any((0, 3)))
    partners = jnp.roll(FLOATS, 1, axis=0)
    expected = jnp.where(foreign[:, :, None], partners, FLOATS)
    np.testing.assert_array_equal(images, expected)
    sides = foreign.any(1).sum() * foreign.any(0).sum()
    assert foreign.sum() == sides  # a filled box
    share = foreign.mean()
    np.testing.assert_array_equal(
      targets, (1 - share) * TARGETS + share * jnp.roll(TARGETS, 1, axis=0)
    )
    shares.add(float(share))
  assert len(shares) > 3


def test_mix_takes_each_about_half_of_the_time_and_targets_stay_probabilities():
  cuts = 0
  for seed in range(24):
    out = augment_all(jax.random.key(seed), PHOTOS, TARGETS)
    before, images, targets = map(np.asarray, out)
    cuts += ((images == before) | (images == np.roll(before, 1, axis=0))).all()
    assert targets.min() >= 0
    assert targets.max() <= 1
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
  assert 6 <= cuts <= 18


def test_same_key_same_batch_other_key_other_batch():
  a, b, c = (augment_all(jax.random.key(k), PHOTOS, TARGETS) for k in (1, 1, 2))
  for same, again, other in zip(a, b, c, strict=True):
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()


def test_compiled_equals_eager():
  key = jax.random.key(0)
  eager = augment_all.__wrapped__(key, PHOTOS, TARGETS)
  for a, b in zip(eager, augment_all(key, PHOTOS, TARGETS), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_sharded_batch_equals_one_device():
  batch = jax.device_put((PHOTOS, TARGETS), batch_sharding(create_mesh()))
  for key in jax.random.split(jax.random.key(0), 6):  # both kinds of mix
    sharded = augment_all(key, *batch)
    assert len(sharded[1].sharding.device_set) == 8
    for a, b in zip(sharded, augment_all(key, PHOTOS, TARGETS), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
