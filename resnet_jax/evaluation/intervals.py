"""Bootstrap intervals of the main scores (Efron & Tibshirani 1993, chapter 13)."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from resnet_jax.runtime.arrays import Float64

RESAMPLES = 1000
LEVEL = 95  # Per cent.


def bootstrap(
  count: int,
  per_image: Mapping[str, Float64[np.ndarray, " n"]],
  of_weights: Callable[[Float64[np.ndarray, " n"]], dict[str, float]],
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, tuple[float, float]]:
  """Returns the percentile interval of scores that need no ranking of all images.

  Images are drawn with replacement. The intervals say how much the scores would vary
  with other test images; they say nothing of another seed of the training.

  Args:
    count: N > 0, the number of images.
    per_image: scores that are means over the images, for each image.
    of_weights: number of times that each image counts -> further scores.
    resamples: number of resamples.
    seed: of the resamples.
  """
  random = np.random.default_rng(seed)
  found: dict[str, list[float]] = defaultdict(list)
  for _ in range(resamples):
    weights = np.bincount(random.integers(0, count, count), minlength=count)
    for name, array in per_image.items():
      found[name].append(float(array @ weights / count))
    for name, score in of_weights(weights.astype(float)).items():
      found[name].append(score)
  edges = (50 - LEVEL / 2, 50 + LEVEL / 2)
  ends = {name: np.nanpercentile(drawn, edges) for name, drawn in found.items()}
  return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
