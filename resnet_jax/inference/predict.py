"""Predicts classes or numbers of images, with Grad-CAM maps.

Letters: N images, B batch, S side of the images, K classes.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.pipelines.single_pass import find_images, read_batches
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.inference.classifier import Classifier, check_finite
from resnet_jax.inference.grad_cam import grad_cam
from resnet_jax.inference.many_batches import run_batches
from resnet_jax.runtime.arrays import Array, Float32, UInt
from resnet_jax.runtime.mesh import create_mesh, fill_devices


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The prediction for one image.

  Attributes:
    file: path of the image.
    error: "" if the image was read. Else the reason; then only `file` is also set.
    classes: the classes with the highest probabilities, the highest first; if an image
      can have several classes, those that reach their thresholds. () if the network
      predicts numbers.
    probabilities: probabilities of `classes`, in [0, 1].
    values: the numbers; () if the network predicts classes.
    image: the network's input image; None unless requested.
    heat: `grad_cam` of the most probable class or of the first number, >= 0; None
      unless requested.
  """

  file: str
  error: str = ""
  classes: tuple[int, ...] = ()
  probabilities: tuple[float, ...] = ()
  values: tuple[float, ...] = ()
  image: UInt[np.ndarray, "s s c"] | None = None
  heat: Float32[np.ndarray, "h w"] | None = None


def predict(
  classifier: Classifier,
  files: FileList | Sequence[str],
  *,
  top: int = 5,
  batch_size: int = 32,
  num_pictures: int = 0,
) -> Iterator[Prediction]:
  """Yields the prediction for each image, in order, in bounded memory.

  Args:
    classifier: the network.
    files: the images, or paths of files and folders as `find_images` takes them.
    top: largest number of classes per image; >= 1. If an image can have several
      classes, all that reach their thresholds are returned.
    batch_size: largest number of images per batch, over all devices.
    num_pictures: number of images that also get `image` and `heat`. These are the first
      images that can be read.

  Raises:
    FileNotFoundError: a path does not exist.
    FloatingPointError: a probability or a number is not finite.
  """
  several, numbers = (classifier.labels == x for x in ("classes", "numbers"))
  mesh = create_mesh()
  if not isinstance(files, FileList):
    files = find_images([files] if isinstance(files, str) else files)

  def outputs(found: dict[str, Array]) -> tuple[Array, Array, Array]:
    answers = found[classifier.answer]
    count = answers.shape[-1]
    top_k = answers, jnp.zeros(answers.shape, jnp.int32)
    if not numbers:
      top_k = jax.lax.top_k(answers, count if several else min(top, count))
    maps = [name for name in found if name.startswith("c")]
    if not maps:  # A custom network.
      return top_k[0], top_k[1], jnp.zeros((len(answers), 1, 1))
    kernel = classifier.variables["params"]["head"]["kernel"]
    return top_k[0], top_k[1], grad_cam(found[max(maps)], kernel, top_k[1][:, 0])

  batches = read_batches(
    files,
    classifier.preprocessing,
    fill_devices(min(batch_size, len(files)), mesh),
    classifier.max_pixels,
    classifier.channels,
  )
  first = 0
  thresholds = np.array(
    classifier.thresholds or [0.5] * len(classifier.class_names), np.float32
  )
  for batch, (answers, classes, heat) in run_batches(
    classifier, batches, outputs, mesh
  ):
    errors = dict(batch["errors"])
    for row in range(min(len(batch["mask"]), len(files) - first)):
      file = files.name(first + row)
      if not batch["mask"][row]:
        yield Prediction(file, errors[first + row].removeprefix(f"{file}: "))
        continue
      check_finite(answers[row], file)
      found, chosen = answers[row], classes[row]
      if numbers:
        prediction = Prediction(file, values=tuple(found.tolist()))
      else:
        if several:
          keep = found >= thresholds[chosen]
          found, chosen = found[keep], chosen[keep]
        prediction = Prediction(
          file, classes=tuple(chosen.tolist()), probabilities=tuple(found.tolist())
        )
      if num_pictures:
        num_pictures -= 1
        prediction = dataclasses.replace(
          prediction, image=batch["image"][row], heat=heat[row]
        )
      yield prediction
    first += len(batch["mask"])
