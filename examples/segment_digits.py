"""Per-pixel classes from a backbone: handwritten digits, pasted on a canvas.

Command: python examples/segment_digits.py [--steps 600] [--out segment_digits.png]

A pixel with more than a quarter of full ink is of the class of its digit, 1 to 10,
others of class 0. Digits of the test canvases are in no training canvas.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from resnet_jax import FPN, Backbone, FCNHead, create_model
from resnet_jax.runtime import compilation

SIDE, CELL, CLASSES, BATCH = 36, 18, 11, 32


class Segmenter(nn.Module):
  """A CIFAR ResNet's maps, merged by a feature pyramid, and a classifier of pixels."""

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps [B, H, W, 1] to logits, [B, H, W, CLASSES]."""
    maps = Backbone(create_model("resnet14"), name="backbone")(images, train)
    finest = FPN(features=64, name="fpn")(maps)["p2"]
    return FCNHead(CLASSES, name="head")(finest, images.shape[1:3], train)


def draw_canvases(digits, labels, count: int, rng) -> tuple[np.ndarray, np.ndarray]:
  """Returns images, [count, SIDE, SIDE, 1] in [0, 1], and their pixels' classes."""
  images = np.zeros((count, SIDE, SIDE, 1), np.float32)
  classes = np.zeros((count, SIDE, SIDE), np.int32)
  for image, of_image in zip(images, classes, strict=True):
    for top in range(0, SIDE, CELL):  # A cell has one digit, or none.
      for left in range(0, SIDE, CELL):
        if rng.random() < 0.2:
          continue
        chosen, scale = rng.integers(len(digits)), rng.integers(1, 3)
        digit = np.kron(digits[chosen], np.ones((scale, scale), np.float32))
        y, x = (edge + rng.integers(CELL - 8 * scale + 1) for edge in (top, left))
        place = slice(y, y + 8 * scale), slice(x, x + 8 * scale)
        image[place][..., 0] = digit
        of_image[place] = np.where(digit > 0.25, labels[chosen] + 1, 0)
  return images, classes


def mean_iou(confusion: np.ndarray) -> float:
  """Mean over classes of intersection over union, from counts [true, predicted]."""
  both = np.diag(confusion)
  return float((both / (confusion.sum(0) + confusion.sum(1) - both)).mean())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("--out", default="segment_digits.png")
  args = parser.parse_args()
  compilation.keep_freed_memory()

  digits, labels = load_digits(return_X_y=True)
  digits = digits.reshape(-1, 8, 8).astype(np.float32) / 16
  train, test = slice(None, 1400), slice(1400, None)
  rng = np.random.default_rng(0)

  model = Segmenter()
  variables = compilation.jit_once(model.init)(
    jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1))
  )
  params, stats = variables["params"], variables["batch_stats"]
  schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, 50, max(args.steps, 51))
  tx = optax.adamw(schedule, weight_decay=1e-3)
  opt_state = tx.init(params)

  @partial(compilation.jit, donate_argnums=(0, 1, 2))
  def step(params, stats, opt_state, images, classes, key):
    def loss_of(params):
      logits, updates = model.apply(
        {"params": params, "batch_stats": stats},
        images,
        train=True,
        mutable="batch_stats",
        rngs={"dropout": key},
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
      return losses.mean(), updates["batch_stats"]

    (loss, stats_), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = tx.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), stats_, opt_state, loss

  @compilation.jit
  def predict(params, stats, images):
    variables = {"params": params, "batch_stats": stats}
    return model.apply(variables, images).argmax(-1)

  start = time.perf_counter()
  for i in range(args.steps):
    images, classes = draw_canvases(digits[train], labels[train], BATCH, rng)
    key = jax.random.key(i)
    params, stats, opt_state, loss = step(
      params, stats, opt_state, images, classes, key
    )
    if (i + 1) % 100 == 0:
      print(f"step {i + 1}: loss {loss:.3f}, {time.perf_counter() - start:.0f} s")

  confusion = np.zeros((CLASSES, CLASSES), int)
  for _ in range(8):
    images, classes = draw_canvases(digits[test], labels[test], BATCH, rng)
    predicted = np.asarray(predict(params, stats, images))
    np.add.at(confusion, (classes, predicted), 1)
  print(f"mean IoU of {8 * BATCH} test canvases: {mean_iou(confusion):.3f}")

  figure = Figure(figsize=(8, 6.4), layout="constrained")
  rows = figure.subplots(3, 4)
  for name, row, pictures in zip(
    ("image", "classes", "predicted"), rows, (images, classes, predicted), strict=True
  ):
    colors = {"cmap": "gray"} if name == "image" else {"cmap": "tab20", "vmax": 19}
    row[0].set_ylabel(name)
    for axes, picture in zip(row, pictures, strict=False):
      axes.imshow(picture, vmin=0, **colors)
      axes.set(xticks=[], yticks=[])
  figure.savefig(args.out, dpi=80)
  print(args.out)


if __name__ == "__main__":
  main()
