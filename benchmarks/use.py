"""Compares the speed of `resnet-jax predict` and `features` with the bare network's.

Command: python benchmarks/use.py [--photos DIR] [--model resnet50] [--json]

Both commands read and decode files, resize and crop the images, and run the network on
batches. The first batch is not timed. Without --photos, the files are 500x375 JPEGs of
noise, which take longer to decode than photos.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from engines import forward_ours
from networks import classes_of, make_images, normalise, side_of
from turns import report

from resnet_jax import Classifier, create_model
from resnet_jax.config.preprocessing import Preprocessing
from resnet_jax.data.pipelines.single_pass import find_images
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.inference.embed import extract
from resnet_jax.inference.predict import predict
from resnet_jax.runtime.compilation import jit_once, keep_freed_memory


def create_classifier(name: str) -> Classifier:
  """Returns an untrained network with class names and preprocessing."""
  import jax
  import jax.numpy as jnp

  size = side_of(name)
  model = create_model(name, classes_of(size))
  variables = jit_once(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  names = tuple(map(str, range(model.num_classes)))
  preprocessing = Preprocessing(resize=round(size * 8 / 7), crop=size)
  return Classifier(name, model, variables, preprocessing, names)


def write_photos(folder: str, count: int) -> None:
  rng = np.random.default_rng(0)
  for i in range(count):
    rough = rng.integers(0, 256, (38, 50, 3), np.uint8)
    cv2.imwrite(f"{folder}/{i}.jpg", cv2.resize(rough, (500, 375)))


def time_stream(run: Callable[[Callable[[int], None]], None], batch: int) -> float:
  """Returns the seconds per image after the first batch.

  Args:
    run: calls its argument with a number of images whenever these are done.
    batch: images per batch.
  """
  times, counts = [], []

  def tell(count: int) -> None:
    counts.append(count)
    times.append(time.perf_counter())

  run(tell)
  after = next(i for i in range(len(counts)) if sum(counts[: i + 1]) >= batch)
  return (times[-1] - times[after]) / sum(counts[after + 1 :])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--photos", metavar="DIR")
  parser.add_argument("--model", default="resnet50")
  parser.add_argument("--batch-size", type=int, default=32)
  parser.add_argument("--batches", type=int, default=10, help="batches per turn")
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--json", action="store_true", help="a JSON line per comparison")
  args = parser.parse_args()
  batch, count = args.batch_size, args.batch_size * args.batches
  keep_freed_memory()  # Before JAX starts.
  classifier = create_classifier(args.model)
  images = normalise(make_images(batch, side_of(args.model), seed=0))
  bare = forward_ours(classifier.model, classifier.variables, images)
  bare()  # Compiles.
  with tempfile.TemporaryDirectory() as folder:
    if not args.photos:
      write_photos(folder, 64)
    found = find_images([args.photos or folder])
    paths = [found.name(i % len(found)) for i in range(count)]
    files = FileList("", paths, [0] * count, [""])

    def run_bare(tell: Callable[[int], None]) -> None:
      for _ in range(args.batches):
        bare()
        tell(batch)

    def run_predict(tell: Callable[[int], None]) -> None:
      for _ in predict(classifier, files, batch_size=batch):
        tell(1)

    def run_features(tell: Callable[[int], None]) -> None:
      target = str(Path(folder, "features.npz"))
      extract(
        classifier,
        files,
        target,
        batch_size=batch,
        advance=lambda done, errors: tell(done + len(errors)),
      )

    cases = {"bare": run_bare, "predict": run_predict, "features": run_features}
    seconds = {name: [] for name in cases}
    for _ in range(args.turns):
      for name, run in cases.items():
        seconds[name].append(time_stream(run, batch))
  medians = {name: statistics.median(values) for name, values in seconds.items()}
  for name in ("predict", "features"):
    case = f"{name} {args.model} batch {batch}, an image"
    pair = {name: medians[name], "bare model": medians["bare"]}
    report(case, pair, ours=name, as_json=args.json)
  if not args.json:
    rates = ", ".join(f"{name} {1 / s:.1f}" for name, s in medians.items())
    print(f"images/s on {os.cpu_count()} cores: {rates}")


if __name__ == "__main__":
  main()
