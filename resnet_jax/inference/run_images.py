"""Images of a run, for a network that is quantised.

Letters: B batch, S side of the images, C channels.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from resnet_jax.data import Source
from resnet_jax.data.images.errors import ImageError
from resnet_jax.data.pipelines.single_pass import read_batches, read_image
from resnet_jax.data.sources.opening import open_source
from resnet_jax.inference.classifier import Classifier
from resnet_jax.runs import run_dir
from resnet_jax.runtime.errors import UserError

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class RunImages:
  """The images of a run, resized and cropped for its network.

  Attributes:
    train: the training split; it calibrates.
    evaluation: the evaluation split; it is only evaluated.
    classifier: the network.
  """

  train: Source
  evaluation: Source
  classifier: Classifier

  def calibration(self, number: int) -> Iterator[np.ndarray]:
    """Yields `number` random training images, or all, in batches [B, S, S, C]."""
    net, images = self.classifier, list[np.ndarray]()
    for index in np.random.default_rng(0).permutation(len(self.train)):
      try:
        image = read_image(
          self.train, int(index), net.preprocessing, net.max_pixels, net.channels
        )
      except ImageError:
        continue  # Training names unreadable images.
      images.append(image)
      number -= 1
      if len(images) == _BATCH or not number:
        yield np.stack(images)
        images = []
      if not number:
        return
    if images:
      yield np.stack(images)

  def accuracy(self, *runs: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """Returns the share of right answers in the evaluation split, in %, of each run."""
    net, right, total = self.classifier, np.zeros(len(runs)), 0
    for batch in read_batches(
      self.evaluation, net.preprocessing, _BATCH, net.max_pixels, net.channels
    ):
      mask, images = batch["mask"], np.asarray(batch["image"])
      labels = np.asarray(batch["label"])[mask]
      total += len(labels)
      for i, run in enumerate(runs):
        right[i] += (run(images).argmax(-1)[mask] == labels).sum()
    return [float(share) for share in 100 * right / max(1, total)]


def open_run_images(workdir: str, trust_code: bool, net: Classifier) -> RunImages:
  """Opens the training and the evaluation images of a run.

  Args:
    workdir: the run.
    trust_code: whether to allow code outside this package that the run names.
    net: the run's network.

  Raises:
    UserError: the network does not predict one class for each image, or `open_source`
      refuses the data set.
  """
  if net.labels != "class":
    raise UserError(
      "--precision int8 needs a network that predicts one class for each image, as its "
      f"accuracy is measured; this one has config.data.labels={net.labels!r}"
    )
  data = run_dir.load_run_config(workdir, trust_code, ("data.factory",)).data
  if data.train_split == data.eval_split:
    raise UserError(
      f"--precision int8 calibrates on training images, but the run evaluates on them: "
      f"config.data.train_split and eval_split are both {data.eval_split!r}"
    )
  splits = (data.train_split, data.eval_split)
  train, evaluation = (open_source(data, s, net.class_names) for s in splits)
  return RunImages(train, evaluation, net)
