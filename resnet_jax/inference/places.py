"""Networks that find places in images, on files of any size.

An image is scaled until its long side is S, and padded at the right and the bottom.

Letters: B batch, S side of the squares, H height, W width, C channels.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import jax
import numpy as np

from resnet_jax.data.images.decode import decode, open_image, upright_size
from resnet_jax.data.images.errors import image_errors
from resnet_jax.data.images.pixels import PixelFormat
from resnet_jax.data.pipelines.host_batches import Transform
from resnet_jax.data.pipelines.single_pass import find_images, read_batches
from resnet_jax.data.sources.file_list import FileList
from resnet_jax.inference.classifier import Classifier
from resnet_jax.inference.many_batches import run_batches
from resnet_jax.runtime.arrays import Array, UInt
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import create_mesh, fill_devices


@dataclasses.dataclass(frozen=True)
class FoundPlaces:
  """What was found in one image.

  Attributes:
    file: path of the image.
    error: "" if the image was read. Else the reason; then only `file` is also set.
    image: the pixels; None unless requested.
  """

  file: str
  error: str = ""
  image: UInt[np.ndarray, "h w c"] | None = None


Found = TypeVar("Found", bound=FoundPlaces)


@dataclasses.dataclass(frozen=True)
class PlaceFinder(Classifier, Generic[Found]):
  """A trained network that finds places, with all that using it needs.

  The attributes are those of `Classifier`. `preprocessing.crop` is S.
  """

  # The outputs from which `_found` makes an answer.
  OUTPUTS: ClassVar[tuple[str, ...]]

  @abc.abstractmethod
  def _transform(self, pixels: PixelFormat) -> Transform:
    """Returns what makes a square of the content of a file."""

  def _finish(self, outputs: dict[str, Array]) -> dict[str, Array]:
    """Returns what `_found` needs of the outputs; traced."""
    return outputs

  @abc.abstractmethod
  def _found(
    self, of_file: Mapping[str, Any], outputs: Mapping[str, Any], size: tuple[int, int]
  ) -> Found:
    """Returns the answer for one image.

    Args:
      of_file: the fields of `FoundPlaces`.
      outputs: of the network, for the square.
      size: width and height of the upright image.
    """

  @abc.abstractmethod
  def _unreadable(self, file: str, error: str) -> Found:
    """Returns the answer for a file that is no image."""

  def predict(
    self, files: FileList | Sequence[str], *, batch_size: int = 8, images: bool = False
  ) -> Iterator[Found]:
    """Yields what is found in each image, in order, in bounded memory.

    Args:
      files: the images, or paths of files and folders as `find_images` takes them.
      batch_size: largest number of images per batch, over all devices.
      images: whether the answers have the pixels of their image.

    Raises:
      NotFoundError: a path does not exist.
      UserError: S is 0, as the network was trained on arrays that are not square.
      FloatingPointError: an output of the network is not finite.
    """
    if not self.preprocessing.crop:
      raise UserError(
        f"{self.name} has no size for image files, as it was trained on arrays that "
        "are not square; call it with arrays of that size"
      )
    mesh = create_mesh()
    if not isinstance(files, FileList):
      files = find_images([files] if isinstance(files, str) else files)
    pixels = PixelFormat(self.channels, self.preprocessing.max_value)
    batches = read_batches(
      files,
      self.preprocessing,
      fill_devices(min(batch_size, len(files)), mesh),
      self.max_pixels,
      transform=self._transform(pixels),
    )
    first = 0
    for batch, found in run_batches(self, batches, self.OUTPUTS, self._finish, mesh):
      errors = dict(batch["errors"])
      for row in range(min(len(batch["mask"]), len(files) - first)):
        file = files.name(first + row)
        if not batch["mask"][row]:
          error = errors[first + row].removeprefix(f"{file}: ")
          yield self._unreadable(file, error)
          continue
        data, _ = files[first + row]
        with image_errors():
          head = open_image(data, self.max_pixels)
          image = decode(data, head, 1, pixels) if images else None
        outputs = jax.tree.map(lambda x, row=row: x[row], found)
        of_file = {"file": file, "image": image}
        yield self._found(of_file, outputs, upright_size(head))
      first += len(batch["mask"])
