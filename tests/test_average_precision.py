"""Average precision of boxes, by hand and against pycocotools."""

import contextlib
import io

import numpy as np
import pytest

from resnet_jax.training.average_precision import average_precision, match

CLASSES = 5
NOTHING = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)


def squares(*lefts):
  """Returns boxes of 10 x 10 pixels."""
  return np.array([[x, 0, x + 10, 10] for x in lefts], float)


def truth(*rows):
  """Returns true boxes from (left side, class, crowd)."""
  return np.array([[x, 0, x + 10, 10, k, crowd] for x, k, crowd in rows], np.float32)


def test_average_precision_by_hand():
  # Ranked: right at all thresholds, wrong, right up to 0.8 (8 of 10 columns, IoU 9/11).
  found = match(
    squares(0, 50, 21),
    np.array([0.9, 0.8, 0.7]),
    np.zeros(3, int),
    truth((0, 0, 0), (20, 0, 0), (40, 2, 0)),
  )
  # Recall 0.5 with precision 1 is 51 of the 101 points, recall 1 with 2/3 is 50.
  low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
  result = average_precision([found], 3)
  first = (7 * low + 3 * high) / 10  # Class 1 has no true boxes, class 2 no detections.
  np.testing.assert_allclose(result.per_class["ap"], [first, np.nan, 0])
  expected = {"ap": first / 2, "ap50": low / 2, "ap75": low / 2}
  assert result.scores == pytest.approx(expected)


def test_detections_in_a_crowd_do_not_count():
  in_crowd = np.array([[25, 2, 27, 4], [26, 2, 28, 4], [0, 0, 10, 10]], float)
  scores, classes = np.array([0.9, 0.8, 0.7]), np.zeros(3, int)
  rows = truth((0, 0, 0), (20, 0, 1), (0, -1, 0))  # The last is padding.
  result = average_precision([match(in_crowd, scores, classes, rows)], 1)
  assert result.scores == {"ap": 1, "ap50": 1, "ap75": 1}
  rows[1, 5] = 0
  result = average_precision([match(in_crowd, scores, classes, rows)], 1)
  assert result.scores["ap"] == pytest.approx(51 / 101 / 3)


def test_a_second_detection_of_a_box_is_wrong():
  boxes, scores = squares(0, 0, 20), np.array([0.9, 0.8, 0.7])
  rows = truth((0, 0, 0), (20, 0, 0))
  result = average_precision([match(boxes, scores, np.zeros(3, int), rows)], 1)
  assert result.scores["ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_without_true_boxes_nothing_is_defined():
  for images in ([], [match(*NOTHING, truth((0, -1, 0)))]):
    result = average_precision(images, 2)
    assert np.isnan([*result.scores.values(), *result.per_class["ap"]]).all()


def random_image(rng, most):
  """Returns boxes, scores, classes and true boxes; many scores and boxes are equal."""
  count, others = rng.integers(0, 12), rng.integers(0, most)
  corner = rng.integers(0, 40, (count, 2))
  size = rng.integers(1, 20, (count, 2))
  kinds = rng.choice([0, 1, 3, 4], count)  # Class 2 has no true boxes.
  crowd = (rng.random(count) < 0.2) | (kinds == 4)  # Class 4 has only crowds.
  rows = np.column_stack([corner, corner + size, kinds, crowd]).astype(np.float32)
  near = rows[rng.integers(0, count, others)] if count else np.zeros((others, 6))
  moved = near[:, :4] + rng.integers(-2, 3, (others, 4))
  anywhere = rng.integers(0, 40, (others, 4))
  boxes = np.where(rng.random((others, 1)) < 0.8, moved, anywhere).astype(np.float32)
  boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
  wrong = rng.integers(0, CLASSES, others)
  classes = np.where(rng.random(others) < 0.8, near[:, 4], wrong).astype(int)
  scores = rng.integers(0, 30, others).astype(np.float32) / 32
  return boxes, scores, classes, rows


def reference(images):
  """Returns COCOeval's (mean of [10, K], AP of each class)."""
  coco = pytest.importorskip("pycocotools.coco")
  evaluation = pytest.importorskip("pycocotools.cocoeval")

  def entry(image, box, kind):
    x0, y0, x1, y1 = map(float, box)
    box = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": image, "bbox": box, "category_id": int(kind)}

  true, detected = [], []
  for i, (boxes, scores, classes, rows) in enumerate(images):
    for row in rows:
      area = float((row[2] - row[0]) * (row[3] - row[1]))
      own = {"id": len(true) + 1, "iscrowd": int(row[5]), "area": area}
      true.append(entry(i, row[:4], row[4]) | own)
    for box, score, kind in zip(boxes, scores, classes, strict=True):
      detected.append(entry(i, box, kind) | {"score": float(score)})
  with contextlib.redirect_stdout(io.StringIO()):
    data = coco.COCO()
    data.dataset = {
      "info": {},
      "images": [{"id": i} for i in range(len(images))],
      "categories": [{"id": i} for i in range(CLASSES)],
      "annotations": true,
    }
    data.createIndex()
    run = evaluation.COCOeval(data, data.loadRes(detected), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
  values = run.eval["precision"][:, :, :, 0, 2].mean(axis=(0, 1))
  return run.stats[:3], np.where(values < 0, np.nan, values)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_that_of_pycocotools(seed):
  rng = np.random.default_rng(seed)
  # A class of the last image has more than 100 detections.
  images = [random_image(rng, most) for most in [20] * 30 + [600]]
  stats, per_class = reference(images)
  result = average_precision([match(*image) for image in images], CLASSES)
  np.testing.assert_allclose(list(result.scores.values()), stats, rtol=0, atol=1e-12)
  np.testing.assert_allclose(result.per_class["ap"], per_class, rtol=0, atol=1e-12)
