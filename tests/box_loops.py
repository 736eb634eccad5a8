"""Boxes and what is done with them, one by one, to compare with."""

import numpy as np


def random_boxes(number: int, seed: int = 0, side: int = 12) -> np.ndarray:
  """Returns boxes with corners on whole pixels, of which many are equal or touch."""
  corners = np.random.default_rng(seed).integers(0, side, (number, 2, 2))
  corners.sort(axis=1)
  return corners.reshape(number, 4).astype(np.float32)


def loop_iou(a, b) -> float:
  width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
  height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
  area_a, area_b = ((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
  union = area_a + area_b - width * height
  return np.float32(width * height) / np.float32(union) if union else 0.0


def loop_nms(boxes, scores, labels, iou) -> list[int]:
  kept: list[int] = []
  for i in np.argsort(-scores, kind="stable"):
    rivals = (j for j in kept if labels[j] == labels[i])
    if all(loop_iou(boxes[i], boxes[j]) <= iou for j in rivals):
      kept.append(int(i))
  return kept
