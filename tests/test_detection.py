"""RetinaNet: anchors, outputs, detections and losses, against loops and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from box_loops import loop_iou, loop_nms, random_boxes

from resnet_jax.models.anchors import anchors_of, detect
from resnet_jax.models.boxes import clip_boxes, decode_boxes
from resnet_jax.models.detection import (
  RetinaNet,
  RetinaNetHead,
  create_detector,
)
from resnet_jax.runtime.compilation import jit_once
from resnet_jax.runtime.errors import UserError
from resnet_jax.training import detection_losses as losses

CLASSES, WIDTH, FEATURES = 5, 8, 32


def tiny(name: str, num_classes: int = CLASSES) -> RetinaNet:
  """Returns a detector with one block a stage and few channels."""
  model = create_detector(name, num_classes)
  net = model.net.clone(stage_sizes=(1, 1, 1, 1), features=WIDTH)
  return model.clone(net=net, features=FEATURES)


@pytest.mark.parametrize(
  ("name", "number"),
  [
    ("retinanet_resnet50_fpn", 34_014_999),
    ("retinanet_resnet50_fpn_v2", 38_198_935),
  ],
)
def test_networks_have_the_published_numbers_of_parameters(name, number):
  model, images = create_detector(name), jnp.zeros((1, 40, 72, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == number
  outputs = jax.eval_shape(model.apply, shapes, images)
  anchors = sum(map(len, model.anchors((40, 72))))
  assert {key: x.shape for key, x in outputs.items()} == {
    "scores": (1, anchors, 91),
    "boxes": (1, anchors, 4),
  }


def test_scores_begin_at_the_prior_and_new_heads_too():
  model, levels = tiny("retinanet_resnet50_fpn"), [jnp.zeros((1, 1, 1, FEATURES))]
  params = jit_once(RetinaNetHead(CLASSES).init)(jax.random.key(0), levels)["params"]
  for head in (params["classes"]["output"], model.init_head(jax.random.key(0))):
    np.testing.assert_allclose(jax.nn.sigmoid(head["bias"]), 0.01, rtol=1e-5)
    assert head["kernel"].shape == (3, 3, FEATURES, 9 * CLASSES)
    assert head["kernel"].std() == pytest.approx(0.01, rel=0.05)
  assert not params["boxes"]["output"]["bias"].any()


def test_anchors_are_those_of_torchvision():
  first, second = anchors_of([(7, 9), (1, 2)], (800, 1088))
  # Rounded halves of the sides of 32, 40 and 50 pixels with the ratios 1/2, 1 and 2.
  halves = [(23, 11), (28, 14), (35, 18), (16, 16), (20, 20), (25, 25)]
  halves += [(y, x) for x, y in halves[:3]]
  expected = [(-x, -y, x, y) for x, y in halves]
  assert first[:9].tolist() == [[*map(float, row)] for row in expected]
  shifts = first.reshape(7, 9, 9, 4) - first[:9]
  # 800 / 7 and 1088 / 9 pixels apart, rounded down.
  assert shifts[2, 3, 4].tolist() == [360, 228, 360, 228]
  assert second.shape == (18, 4)
  assert second[3].tolist() == [-32, -32, 32, 32]
  smaller = anchors_of([(1, 1)], (8, 8), smallest=8)[0]
  assert smaller[3].tolist() == [-4, -4, 4, 4]


def loop_detect(outputs, anchors, size, score, nms, most, per_level):
  """Returns (score, label, box) of each detection in one image."""
  found, start = [], 0
  for level in anchors:
    logits = outputs["scores"][start : start + len(level)]
    boxes = decode_boxes(outputs["boxes"][start : start + len(level)], level)
    boxes = np.asarray(clip_boxes(boxes, size))
    start += len(level)
    scores = np.asarray(jax.nn.sigmoid(logits)).ravel()
    best = np.argsort(-scores, kind="stable")[:per_level]
    classes = logits.shape[1]
    found += [
      (scores[i], i % classes, boxes[i // classes]) for i in best if scores[i] > score
    ]
  scores, labels, boxes = map(np.array, zip(*found, strict=True))
  return [found[i] for i in loop_nms(boxes, scores, labels, nms)[:most]]


@pytest.mark.parametrize("per_level", [7, 1000])
def test_detections_equal_a_loop(per_level):
  anchors = anchors_of([(2, 3), (1, 2)], (40, 60), smallest=8)
  number = sum(map(len, anchors))
  # Rounded, so that many scores are equal.
  outputs = {
    "scores": jnp.round(normal(2, number, 3)),
    "boxes": normal(2, number, 4, seed=1) / 4,
  }
  sizes, options = np.array([[40, 60], [30, 50]]), (0.4, 0.3, 20, per_level)
  found = jit_once(lambda outputs: detect(outputs, anchors, sizes, *options))(outputs)
  for i in range(2):
    image = {key: x[i] for key, x in outputs.items()}
    expected = loop_detect(image, anchors, sizes[i], *options)
    scores, labels, boxes = map(np.array, zip(*expected, strict=True))
    count = len(scores)
    assert found.mask[i].tolist() == [j < count for j in range(20)]
    assert found.labels[i, :count].tolist() == labels.tolist()
    np.testing.assert_allclose(found.scores[i, :count], scores, rtol=1e-6)
    np.testing.assert_allclose(found.boxes[i, :count], boxes, atol=1e-4)
    for array in found:
      assert not array[i, count:].any()


def test_nothing_above_the_score_and_wrong_anchors():
  anchors = anchors_of([(1, 1)], (8, 8))
  outputs = {"scores": jnp.zeros((1, 9, 2)), "boxes": jnp.zeros((1, 9, 4))}
  found = jit_once(lambda x: detect(x, anchors, (8, 8), score=0.5, most=3))(outputs)
  assert not any(array.any() for array in found)
  with pytest.raises(UserError, match="for 9 anchors, not for 18"):
    detect(outputs, anchors * 2, (8, 8))


def loop_match(anchors, boxes, mask):
  """Matches as in Lin et al. 2017, and torchvision's low-quality matches."""
  there = [i for i in range(len(boxes)) if mask[i]]
  ious = {(i, j): loop_iou(boxes[i], a) for i in there for j, a in enumerate(anchors)}
  most = {i: max(ious[i, j] for j in range(len(anchors))) for i in there}
  matches = []
  for j in range(len(anchors)):
    nearest = max(there, key=lambda i: ious[i, j], default=None)
    best = -1 if nearest is None else ious[nearest, j]
    is_best = any(0 < most[i] == ious[i, j] for i in there)
    if best >= 0.5 or is_best:
      matches.append(nearest)
    else:
      matches.append(losses.IGNORED if best >= 0.4 else losses.BACKGROUND)
  return matches


@pytest.mark.parametrize("seed", range(3))
def test_matching_equals_a_loop(seed):
  anchors, boxes = random_boxes(80, seed), random_boxes(6, seed + 10)
  boxes[0] = 100, 100, 110, 110  # Touches no anchor.
  mask = np.array([True, True, True, False, seed > 0, True])
  ours = jit_once(losses.match_anchors)(anchors, boxes, mask)
  assert ours.tolist() == loop_match(anchors, boxes, mask)
  assert {losses.IGNORED, losses.BACKGROUND} < {*ours.tolist()}


def test_without_objects_all_is_background():
  anchors, boxes, mask = random_boxes(5), random_boxes(2), np.zeros(2, bool)
  for count in (0, 2):
    matches = jit_once(losses.match_anchors)(anchors, boxes[:count], mask[:count])
    assert matches.tolist() == [losses.BACKGROUND] * 5


def test_focal_loss_is_its_formula_and_has_finite_gradients():
  logits, targets = normal(50) * 3, jnp.arange(50.0) % 2
  p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  p_t = np.where(targets == 1, p, 1 - p)
  alpha_t = np.where(targets == 1, 0.25, 0.75)
  expected = -alpha_t * (1 - p_t) ** 2 * np.log(p_t)
  focal = jit_once(losses.sigmoid_focal)
  ours = focal(logits, targets)
  np.testing.assert_allclose(ours, expected, rtol=1e-4)
  extreme = jnp.array([-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30])
  gradients = jit_once(jax.grad(lambda *x: losses.sigmoid_focal(*x).sum()))
  for target in (0.0, 1.0):
    gradient = gradients(extreme, jnp.full(7, target))
    assert jnp.isfinite(gradient).all()


def box_error(kind, deltas, box, anchor) -> float:
  if kind == "giou":
    found = np.asarray(decode_boxes(deltas, anchor), np.float64)
    iou = loop_iou(found, box)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (found, box)]
    union = sum(areas) / (1 + iou)
    width, height = np.maximum(found, box)[2:] - np.minimum(found, box)[:2]
    return 1 - iou + 1 - union / (width * height)
  (w, h), (aw, ah) = box[2:] - box[:2], anchor[2:] - anchor[:2]
  x, y = (box[:2] + box[2:] - anchor[:2] - anchor[2:]) / 2
  error = np.abs(deltas - np.array([x / aw, y / ah, np.log(w / aw), np.log(h / ah)]))
  if kind == "smooth_l1":
    error = np.where(error < 1, error**2 / 2, error - 0.5)
  return error.sum()


@pytest.mark.parametrize("kind", losses.BOX_LOSSES)
def test_losses_are_means_over_anchors_and_sums_over_images(kind):
  anchors = anchors_of([(3, 4), (2, 2)], (24, 32), smallest=8)
  flat = np.concatenate(anchors)
  outputs = {
    "scores": normal(4, len(flat), 3),
    "boxes": normal(4, len(flat), 4, seed=1) / 4,
  }
  boxes = np.random.default_rng(0).uniform(0, 16, (4, 3, 4)).astype(np.float32)
  boxes[..., 2:] += boxes[..., :2] + 2
  labels = jnp.arange(12).reshape(4, 3) % 3
  mask = jnp.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]], bool)
  there = jnp.array([True, True, True, False])
  truth = jnp.where(mask[..., None], boxes, 0), labels, mask, there

  @jit_once
  def sums(outputs, truth):
    return losses.detection_losses(outputs, anchors, *truth, box_loss=kind)

  halves = [jax.tree.map(lambda x: x[:2], (outputs, truth))]
  halves += [jax.tree.map(lambda x: x[2:], (outputs, truth))]
  whole, added = (
    sums(outputs, truth),
    jax.tree.map(jnp.add, *[sums(*x) for x in halves]),
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, added)
  expected = {"class_loss": 0.0, "box_loss": 0.0, "count": 3.0}
  for i in range(3):
    matches = loop_match(flat, boxes[i], mask[i])
    objects = {j: match for j, match in enumerate(matches) if match >= 0}
    count = max(1, len(objects))
    targets = np.zeros((len(flat), 3), np.float32)
    for j, match in objects.items():
      targets[j, labels[i, match]] = 1
      error = box_error(kind, outputs["boxes"][i, j], boxes[i, match], flat[j])
      expected["box_loss"] += error / count
    counted = np.array(matches) != losses.IGNORED
    focal = losses.sigmoid_focal(outputs["scores"][i], jnp.asarray(targets))
    expected["class_loss"] += float(focal[counted].sum()) / count
  assert {key: float(x) for key, x in whole.items()} == pytest.approx(
    expected, rel=1e-4
  )


def test_wrong_names_and_numbers():
  with pytest.raises(UserError, match="name='retinanet' is unknown; did you mean reti"):
    create_detector("retinanet")
  with pytest.raises(UserError, match="num_classes=0 must be > 0"):
    create_detector("retinanet_resnet50_fpn", 0)
  with pytest.raises(UserError, match="box_loss='iou' is unknown"):
    ones = jnp.ones((1, 1), int)
    boxes = jnp.ones((1, 1, 4))
    losses.detection_losses({}, (), boxes, ones, ones > 0, box_loss="iou")
  assert create_detector("retinanet_resnet50_fpn", norm="frozen").net.norm_cls().epsilon
