"""The class of each pixel, with a network of one's own: digits, pasted on a canvas.

Command: python examples/segment_digits.py [--steps 600] [--workdir RUN]

A pixel with more than a quarter of full ink is of the class of its digit, others are of
class 0. Digits of the test canvases are in no training canvas.

The mean IoU of the test canvases was 0.920 (2026-11-28, jax 0.10.2, one seed). It took
15 minutes on 2 CPU cores that were busy with other work, of which it had a part.
"""

import argparse

import jax
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from resnet_jax import FPN, Backbone, Config, Experiment, FCNHead, create_model, train
from resnet_jax.config.preprocessing import preprocessing_of
from resnet_jax.data import ImageArrays
from resnet_jax.inference.segmentation import PixelClassifier
from resnet_jax.runtime import compilation

SIDE, CELL = 36, 18
NAMES = ("background", *map(str, range(10)))


class PyramidSegmenter(nn.Module):
  """A CIFAR ResNet's maps, merged by a feature pyramid, and a classifier of pixels."""

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
    """Maps [B, H, W, 1] to {"out": logits [B, H, W, K]}."""
    maps = Backbone(create_model("resnet14"), name="backbone")(images, train)
    finest = FPN(features=64, name="fpn")(maps)["p2"]
    return {"out": FCNHead(len(NAMES), name="head")(finest, images.shape[1:3], train)}


def draw_canvases(digits, labels, count: int, rng) -> ImageArrays:
  """Returns uint8 images [count, SIDE, SIDE, 1] with the class of each pixel."""
  images = np.zeros((count, SIDE, SIDE, 1), np.uint8)
  masks = np.zeros((count, SIDE, SIDE), np.uint8)
  for image, mask in zip(images, masks, strict=True):
    for top in range(0, SIDE, CELL):  # A cell has one digit, or none.
      for left in range(0, SIDE, CELL):
        if rng.random() < 0.2:
          continue
        chosen, scale = rng.integers(len(digits)), rng.integers(1, 3)
        digit = np.kron(digits[chosen], np.ones((scale, scale), np.uint8))
        y, x = (edge + rng.integers(CELL - 8 * scale + 1) for edge in (top, left))
        place = slice(y, y + 8 * scale), slice(x, x + 8 * scale)
        image[place][..., 0] = digit
        mask[place] = np.where(digit > 63, labels[chosen] + 1, 0)
  return ImageArrays(images, masks, NAMES)


def draw_figure(path: str, images, masks, found) -> None:
  figure = Figure(figsize=(8, 6.4), layout="constrained")
  rows = zip(("image", "classes", "predicted"), figure.subplots(3, 4), strict=True)
  for (name, row), pictures in zip(rows, (images, masks, found), strict=True):
    colors = {"cmap": "gray"} if name == "image" else {"cmap": "tab20", "vmax": 19}
    row[0].set_ylabel(name)
    for axes, picture in zip(row, pictures, strict=False):
      axes.imshow(picture, vmin=0, **colors)
      axes.set(xticks=[], yticks=[])
  figure.savefig(path, dpi=80)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("--canvases", type=int, default=10_000)
  parser.add_argument("--workdir", default="runs/segment_digits")
  args = parser.parse_args()
  compilation.keep_freed_memory()

  digits, labels = load_digits(return_X_y=True)
  digits = (digits.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
  rng = np.random.default_rng(0)
  train_data = draw_canvases(digits[:1400], labels[:1400], args.canvases, rng)
  test_data = draw_canvases(digits[1400:], labels[1400:], 256, rng)

  config = Config(num_steps=args.steps, batch_size=32, eval_every_steps=args.steps)
  config.data.labels = "mask"
  config.optim.name, config.optim.learning_rate = "adamw", 3e-3
  config.optim.schedule, config.optim.warmup_steps = "cosine", args.steps // 12
  model = PyramidSegmenter()
  experiment = Experiment.create(
    config, model=model, train_data=train_data, eval_data=test_data
  )
  state, results = train(experiment, args.workdir)
  print(f"mean IoU of {len(test_data)} test canvases: {results['mean_iou']:.3f}")

  network = PixelClassifier(
    *("digits", model, state.variables, preprocessing_of(config.data), NAMES),
    channels=1,
    labels="mask",
  )
  shown = test_data.images[:4]
  path = f"{args.workdir}/segmented.png"
  draw_figure(path, shown, test_data.labels, network(shown)["classes"])
  print(path)


if __name__ == "__main__":
  main()
