"""Bootstrap intervals of the main scores (Efron & Tibshirani 1993, chapter 13)."""

from collections import defaultdict

import numpy as np

from resnet_jax.evaluation.answers import Answers
from resnet_jax.evaluation.scores import Counts, per_image

RESAMPLES = 1000
LEVEL = 95  # Per cent.


def intervals(
  answers: Answers, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
  """Returns the percentile interval of each score that needs no ranking of all images.

  Images are drawn with replacement. The intervals say how much the scores would vary
  with other test images; they say nothing of another seed of the training.

  Args:
    answers: of at least one image.
    resamples: number of resamples.
    seed: of the resamples.
  """
  random = np.random.default_rng(seed)
  count = len(answers.labels)
  values = per_image(answers)
  found: dict[str, list[float]] = defaultdict(list)
  for _ in range(resamples):
    weights = np.bincount(random.integers(0, count, count), minlength=count)
    for name, array in values.items():
      found[name].append(float(array @ weights / count))
    for name, score in Counts.of(answers, weights.astype(float)).scores().items():
      found[name].append(score)
  edges = (50 - LEVEL / 2, 50 + LEVEL / 2)
  ends = {name: np.nanpercentile(drawn, edges) for name, drawn in found.items()}
  return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
