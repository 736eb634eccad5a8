"""A trained detector with all that using it needs.

detector = Detector("retinanet", model, variables, ("cat", "dog"), size=640)
for found in detector.predict(["photos"]):
  print(found.file, found.boxes, [detector.class_names[i] for i in found.classes])

Letters: B batch, H height, W width, S side of the squares, C channels, n objects.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import kernels
from resnet_jax.config.preprocessing import Preprocessing, check_fits
from resnet_jax.config.schema import DataConfig
from resnet_jax.data.batches.preprocess import normalize, to_grey_levels
from resnet_jax.data.images.boxed_images import BoxedTransform, boxes_in_image
from resnet_jax.data.images.decode import open_image, upright_size
from resnet_jax.data.images.errors import ImageError, image_errors
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.pipelines.host_batches import count_threads
from resnet_jax.data.pipelines.single_pass import find_images
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.inference.drawn_boxes import draw_boxes
from resnet_jax.models.anchors import Detections, detect
from resnet_jax.models.detection import RetinaNet
from resnet_jax.models.folding import fold_batch_norm, folded_model
from resnet_jax.models.variables import Variables
from resnet_jax.runtime import compilation
from resnet_jax.runtime.arrays import AnyArray, Array, Bool, Float32, Int32, UInt
from resnet_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class FoundObjects:
  """The objects in one image, the highest scores first.

  Attributes:
    file: path of the image.
    error: "" if the image was read. Else the reason, and there are no objects.
    boxes: x0, y0, x1, y1 in pixels of the upright image.
    scores: probabilities.
    classes: numbers of classes.
  """

  file: str
  error: str = ""
  boxes: Float32[np.ndarray, "n 4"] = dataclasses.field(
    default_factory=lambda: np.zeros((0, 4), np.float32)
  )
  scores: Float32[np.ndarray, " n"] = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.float32)
  )
  classes: Int32[np.ndarray, " n"] = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.int32)
  )


# An image as the network takes it, and width and height of its file; or the reason why
# it cannot be read.
_Read = tuple[np.ndarray, tuple[int, int]] | str


@dataclasses.dataclass(frozen=True)
class Detector:
  """A trained detector with its weights, preprocessing and class names.

  Attributes:
    name: name of the architecture.
    model: the network.
    variables: {"params": ..., "batch_stats": ...} in the named layout.
    preprocessing: how images are normalised and interpolated. Its resize and crop are
      not used: a whole image is scaled into a square, as in training.
    class_names: in the order of the scores.
    size: side of the square into which image files are scaled, in pixels.
    channels: C of the images that the network takes, see `Classifier`.
    max_pixels: see `Classifier`.
    score: objects have a higher probability.
    nms: see `detect`.
    most: largest number of objects in an image.
  """

  name: str
  model: RetinaNet
  variables: Variables
  preprocessing: Preprocessing
  class_names: tuple[str, ...]
  size: int
  channels: int = 3
  max_pixels: int = DataConfig().max_pixels
  score: float = 0.05
  nms: float = 0.5
  most: int = 100

  def __call__(self, images: UInt[AnyArray, "b h w c"]) -> Detections:
    """Finds the objects in images that already have their size.

    Args:
      images: of any height and width; the highest value of uint8 or uint16 counts as 1.

    Returns:
      Boxes in pixels of these images, scores and numbers of classes.

    Raises:
      UserError: the images have another number of channels than the network takes.
      FloatingPointError: outputs of the network are not finite.
    """
    if images.shape[-1] != self.channels:
      raise UserError(
        f"images have {images.shape[-1]} channels, the network takes {self.channels}"
      )
    check_fits(self.preprocessing, self.channels)
    found: Detections
    is_finite, found = self._forward(self._folded, images)
    if not is_finite.all():
      place = int(np.argmin(is_finite))
      raise FloatingPointError(
        f"the network's outputs for image {place} of the batch are not finite; check "
        "its weights, and the mean and std of the images"
      )
    return found

  @functools.cached_property
  def _folded(self) -> Variables:
    fold = jax.jit(lambda variables: fold_batch_norm(self.model, variables)[1])
    folded: Variables = fold(self.variables)
    return folded

  @functools.cached_property
  def _forward(self) -> Callable[[Variables, Any], tuple[Bool[Array, " b"], Any]]:
    """Returns compiled (folded variables, images) -> whether finite, detections."""
    model = folded_model(self.model)
    prepared = self.preprocessing

    def forward(variables: Variables, images: Array) -> tuple[Array, Detections]:
      grey_levels = to_grey_levels(images)
      order = prepared.channel_order
      inputs = normalize(grey_levels, prepared.mean, prepared.std, order)
      outputs: Any = model.apply(variables, inputs)
      height, width = images.shape[1:3]
      found = detect(
        outputs,
        self.model.anchors((height, width)),
        (height, width),
        self.score,
        self.nms,
        self.most,
      )
      finite = [jnp.isfinite(x).all(axis=(1, 2)) for x in outputs.values()]
      return jnp.stack(finite).all(axis=0), found

    dtype = self.model.net.dtype
    choice = kernels.resolve_for_inference(dtype)
    return compilation.jit(kernels.traced_with(choice, forward), dtype=dtype)

  def predict(
    self, files: FileList | Sequence[str], batch_size: int = 8
  ) -> Iterator[FoundObjects]:
    """Yields the objects in each image, in order, in bounded memory.

    Args:
      files: the images, or paths of files and folders as `find_images` takes them.
      batch_size: largest number of images that are computed at once.

    Raises:
      NotFoundError: a path does not exist.
      FloatingPointError: outputs of the network are not finite.
    """
    if not isinstance(files, FileList):
      files = find_images([files] if isinstance(files, str) else files)
    batch_size = min(batch_size, len(files))
    empty = np.zeros((batch_size, self.size, self.size, self.channels), self._dtype)
    with ThreadPoolExecutor(count_threads()) as pool:
      for first in range(0, len(files), batch_size):
        places = range(first, min(first + batch_size, len(files)))
        read = [*pool.map(functools.partial(self._read, files), places)]
        images = empty.copy()  # The last batch is padded: each shape is compiled.
        for image, result in zip(images, read, strict=False):
          if not isinstance(result, str):
            image[:] = result[0]
        found = jax.device_get(self(images))
        for row, (place, result) in enumerate(zip(places, read, strict=True)):
          yield self._found(files.name(place), result, found, row)

  @property
  def _dtype(self) -> Any:
    return PixelFormat(self.channels, self.preprocessing.max_value).dtype

  def _read(self, files: FileList, index: int) -> _Read:
    pixels = PixelFormat(self.channels, self.preprocessing.max_value)
    transform = BoxedTransform(
      self.size, 1, self.preprocessing.interpolation, self.max_pixels, pixels
    )
    try:
      content, _ = files[index]
      with image_errors():
        size = upright_size(open_image(content, self.max_pixels))
      no_boxes = np.zeros((0, 6), np.float32)
      return transform.pair(content, no_boxes, np.random.default_rng())[0], size
    except ImageError as error:
      return str(error)

  def _found(
    self, file: str, result: _Read, found: Detections, row: int
  ) -> FoundObjects:
    if isinstance(result, str):
      return FoundObjects(file, result)
    mask = np.asarray(found.mask[row])
    boxes, scores, labels = (np.asarray(x[row])[mask] for x in found[:3])
    return FoundObjects(
      file, "", boxes_in_image(boxes, *result[1], self.size), scores, labels
    )

  def draw(
    self, image: UInt[np.ndarray, "h w c"], found: FoundObjects, score: float = 0.5
  ) -> UInt[np.ndarray, "h w 3"]:
    """Draws the objects with their names and scores on an image.

    Args:
      image: uint8, the upright image to which the boxes belong; grey or RGB.
      found: the objects.
      score: objects with a lower score are left out.
    """
    chosen = np.flatnonzero(found.scores >= score)[::-1]  # The best ones on top.
    texts = [
      f"{self.class_names[found.classes[i]]} {100 * found.scores[i]:.0f} %"
      for i in chosen
    ]
    return draw_boxes(image, found.boxes[chosen], found.classes[chosen], texts)
