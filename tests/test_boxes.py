"""Overlap, coding and suppression of boxes, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from box_loops import loop_iou, loop_nms, random_boxes

from resnet_jax.models.boxes import (
  box_area,
  box_iou,
  clip_boxes,
  decode_boxes,
  encode_boxes,
  non_maximum_suppression,
)


def test_overlap_of_all_pairs_equals_a_loop():
  a, b = random_boxes(20), random_boxes(30, seed=1)
  a[0] = b[0] = 3  # Boxes without area.
  ours = jax.jit(box_iou)(a, b)
  expected = [[loop_iou(x, y) for y in b] for x in a]
  np.testing.assert_allclose(ours, expected, rtol=1e-6)
  assert box_area(a).tolist() == [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in a]
  gradient = jax.jit(jax.grad(lambda x: box_iou(x, b).sum()))(a)
  assert jnp.isfinite(gradient).all()


def test_coding_and_back_gives_the_boxes():
  rng = np.random.default_rng(0)
  corners = rng.uniform(0, 100, (2, 50, 2))
  sizes = rng.uniform(1, 50, (2, 50, 2))
  boxes, anchors = np.concatenate([corners, corners + sizes], -1).astype(np.float32)
  deltas = encode_boxes(boxes, anchors)
  np.testing.assert_allclose(decode_boxes(deltas, anchors), boxes, atol=1e-4)


def test_coding_of_one_box():
  anchor = jnp.array([10.0, 20.0, 30.0, 60.0])  # Centre (20, 40), 20 wide, 40 high.
  box = jnp.array([20.0, 30.0, 60.0, 50.0])  # Centre (40, 40), 40 wide, 20 high.
  deltas = encode_boxes(box, anchor)
  np.testing.assert_allclose(deltas, [1, 0, np.log(2), -np.log(2)], rtol=1e-6)
  np.testing.assert_array_equal(decode_boxes(jnp.zeros(4), anchor), anchor)
  huge = decode_boxes(jnp.array([0.0, 0.0, 1e9, 0.0]), anchor)
  np.testing.assert_allclose(huge, [20 - 625, 20, 20 + 625, 60], rtol=1e-6)


def test_clipping_ends_at_the_border():
  boxes = jnp.array([[-5.0, -1.0, 70.0, 40.0], [2.0, 3.0, 4.0, 5.0]])
  expected = [[0, 0, 60, 30], [2, 3, 4, 5]]
  for size in ((30, 60), jnp.array([30, 60])):
    np.testing.assert_array_equal(clip_boxes(boxes, size), expected)


@pytest.mark.parametrize("seed", range(3))
def test_suppression_equals_a_loop(seed):
  rng = np.random.default_rng(seed)
  boxes = random_boxes(60, seed)
  scores = rng.integers(0, 8, 60).astype(np.float32)  # Many are equal.
  labels = rng.integers(0, 3, 60)
  mask = rng.random(60) < 0.7
  there = np.flatnonzero(mask)
  for iou in (0.0, 0.5):
    kept = there[loop_nms(boxes[there], scores[there], labels[there], iou)]
    for most in (5, 64):
      found, is_kept = jax.jit(non_maximum_suppression, static_argnums=4)(
        jnp.asarray(boxes), jnp.asarray(scores), labels, iou, most, mask
      )
      assert is_kept.tolist() == [i < len(kept) for i in range(most)]
      assert found[is_kept].tolist() == kept[:most].tolist()
      assert not found[~is_kept].any()


def test_suppression_of_no_boxes_and_of_batches():
  boxes, scores = jnp.asarray(random_boxes(6)), jnp.arange(6.0)
  masks = jnp.array([[False] * 6, [True] * 6])
  labels = jnp.arange(6)

  def suppress(mask):
    return non_maximum_suppression(boxes, scores, labels, 0.5, 7, mask)

  found, is_kept = jax.vmap(suppress)(masks)
  assert is_kept.tolist() == [[False] * 7, [True] * 6 + [False]]
  assert found[1].tolist() == [5, 4, 3, 2, 1, 0, 0]
  without = non_maximum_suppression(boxes, scores, labels, 0.5, 7)
  np.testing.assert_array_equal(without[0], found[1])
