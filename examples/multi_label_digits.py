"""Several classes for each image: which handwritten digits are on a canvas.

Command: python examples/multi_label_digits.py [--epochs 12] [--workdir RUN]

A canvas has zero to four digits. Digits of the test canvases are in no training canvas.
The mAP of 2,000 test canvases is 0.999, and 96.0 % of them have exactly the
right classes (2026-11-27, about 8 minutes on two busy CPU cores).
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

from resnet_jax import Config, Experiment, train
from resnet_jax.data import ImageArrays
from resnet_jax.evaluation.answers import collect
from resnet_jax.evaluation.report import write_report
from resnet_jax.runtime import compilation
from resnet_jax.training.evaluator import Prepared

CELL, CELLS = 8, 3  # Pixels of a digit; digits along a side of the canvas.
NAMES = tuple(f"digit {i}" for i in range(10))


def draw_canvases(digits, classes, count: int, rng) -> ImageArrays:
  """Returns `count` canvases, and which of the ten digits each of them has."""
  side = CELL * CELLS
  images = np.zeros((count, side, side, 1), np.uint8)
  labels = np.zeros((count, 10), bool)
  for image, label in zip(images, labels, strict=True):
    for place in rng.permutation(CELLS**2)[: rng.integers(5)]:
      chosen = rng.integers(len(digits))
      top, left = CELL * (place // CELLS), CELL * (place % CELLS)
      image[top : top + CELL, left : left + CELL, 0] = digits[chosen]
      label[classes[chosen]] = True
  return ImageArrays(images, labels, NAMES)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--epochs", type=float, default=12)
  parser.add_argument("--canvases", type=int, default=20_000)
  parser.add_argument("--workdir", default="runs/multi_label_digits")
  args = parser.parse_args()
  compilation.keep_freed_memory()

  digits, classes = load_digits(return_X_y=True)
  digits = (digits.reshape(-1, CELL, CELL) * 15.9).astype(np.uint8)
  order = np.random.default_rng(0).permutation(len(digits))
  first, rest = order[:1400], order[1400:]
  rng = np.random.default_rng(1)
  train_data = draw_canvases(digits[first], classes[first], args.canvases, rng)
  test_data = draw_canvases(digits[rest], classes[rest], args.canvases // 10, rng)

  config = Config(num_epochs=args.epochs, eval_every_epochs=args.epochs)
  config.data.labels = "classes"
  config.model.name = "resnet14"
  config.optim.schedule = "cosine"
  config.optim.warmup_epochs = args.epochs / 10
  experiment = Experiment.create(config, train_data=train_data, eval_data=test_data)
  state = train(experiment, args.workdir).state

  prepared = Prepared(experiment, state.variables, test_data, NAMES)
  title = "ResNet-14 on canvases of digits"
  folder = f"{args.workdir}/report"
  scores = write_report(folder, prepared, collect(prepared), title)
  print(f"mAP of {len(test_data)} test canvases: {scores['average_precision']:.3f}")
  print(f"report: {folder}/report.html")


if __name__ == "__main__":
  main()
