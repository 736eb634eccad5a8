"""Augmentation and normalisation."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.augment import normalize, preprocess, random_crop, random_flip

IMAGES = jax.random.randint(jax.random.key(9), (64, 6, 6, 3), 1, 256).astype(jnp.uint8)


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
