"""Embeddings: writes a trained network's features of images to a file.

Letters: N images that can be read, F features, H x W size of a feature map.
"""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from resnet_jax.config.allowed import check_choice
from resnet_jax.data import Source
from resnet_jax.data.pipelines.single_pass import find_images, read_batches, read_image
from resnet_jax.data.sources.file_list import FileList, own_images, sub_folders
from resnet_jax.data.sources.folder import list_images, list_splits
from resnet_jax.inference.classifier import Classifier, check_finite
from resnet_jax.inference.image_grid import Picture, draw_grid
from resnet_jax.inference.many_batches import run_batches
from resnet_jax.runtime import figure_style
from resnet_jax.runtime.arrays import Array, Float, Int
from resnet_jax.runtime.atomic_files import replacing
from resnet_jax.runtime.errors import UserError
from resnet_jax.runtime.mesh import create_mesh, fill_devices

_QUERIES, _NEIGHBOURS = 8, 7
# Called after each batch with the number of images and the reading errors.
Advance = Callable[[int, list[str]], object]


def list_all(root: Path, val_share: float) -> FileList:
  """Lists the images of all splits of a folder or table, see `folder.list_images`.

  A folder without subfolders has images without labels; their label is -1.

  Raises:
    ValueError: as in `list_images`.
    FileNotFoundError: the folder or table does not exist.
  """
  if root.is_dir():
    if not sub_folders(root):
      files = find_images([str(root)])
      files.labels[:], files.class_names = -1, ()
      return files
    if loose := next(own_images(root), ""):
      raise UserError(
        f"{str(root)!r} has images beside its folders, such as {loose!r}: move them "
        "into one of the folders, or name another folder"
      )
  names: tuple[str, ...] = ()
  paths, labels = [], []
  for split in list_splits(root):
    part = list_images(root, split, val_share, names)
    names = part.class_names
    paths += [part.name(i) for i in range(len(part))]
    labels += part.labels.tolist()
  return FileList("", paths, labels, names)


def extract(
  classifier: Classifier,
  source: Source,
  path: str,
  *,
  layer: str = "pooled",
  batch_size: int = 32,
  figure: str = "",
  advance: Advance = lambda count, errors: None,
) -> int:
  """Writes the features of all images that can be read, in bounded memory.

  The file contains "features" float32 [N, F], or [N, H, W, F] for a feature map;
  "files" [N]; "labels" [N] int32, -1 for images without label; and "class_names".

  Args:
    classifier: the network.
    source: the images.
    path: the .npz file; an existing one is replaced at the end.
    layer: "pooled", the input of the head, or the feature map of a stage, "c2" to "c5".
    batch_size: largest number of images per batch, over all devices.
    figure: path of a PNG file that shows some images and their nearest neighbours.
    advance: called after each batch with the number of images and the reading errors.

  Returns:
    N.

  Raises:
    ValueError: `path` does not end in .npz, the network has no such layer, or no image
      can be read.
    FloatingPointError: a feature is not finite.
  """
  if Path(path).suffix != ".npz" or not Path(path).absolute().parent.is_dir():
    raise UserError(f"{path!r} must be an .npz file in an existing folder")
  if not classifier.has_maps:
    raise UserError(f"features need a ResNet, not {type(classifier.model).__name__}")
  stages = [f"c{i}" for i in range(2, 2 + len(classifier.model.stage_sizes))]
  check_choice("layer", layer, ["pooled", *stages])
  mesh = create_mesh()
  batches = read_batches(
    source,
    classifier.preprocessing,
    fill_devices(min(batch_size, len(source)), mesh),
    classifier.max_pixels,
    classifier.channels,
  )

  def wanted(found: dict[str, Array]) -> Array:
    return found[layer].astype(jnp.float32)

  shape: tuple[int, ...] = ()
  index: list[int] = []
  labels: list[int] = []
  first = 0
  with (
    tempfile.TemporaryFile(dir=Path(path).absolute().parent) as raw,
    contextlib.ExitStack() as stack,
  ):
    part = stack.enter_context(replacing(path))
    for batch, found in run_batches(classifier, batches, wanted, mesh):
      rows = np.flatnonzero(batch["mask"])
      raw.write(found[rows].tobytes())
      for row in rows.tolist():
        check_finite(found[row], source.name(first + row))
      shape = found.shape[1:]
      index += (first + rows).tolist()
      labels += batch["label"][rows].tolist()
      first += len(batch["mask"])
      advance(len(rows), [text for _, text in batch["errors"]])
    if not index:
      raise UserError("no image can be read")
    raw.flush()
    stored = np.memmap(raw, np.float32, "r", shape=(len(index), *shape))
    with open(part, "wb") as file:
      np.savez(
        file,
        features=stored,
        files=np.array([source.name(i) for i in index]),
        labels=np.array(labels, np.int32),
        class_names=np.array(source.class_names, dtype=np.str_),
      )
    stack.close()  # The file is now at `path`, and stays if drawing fails.
    if figure:
      _draw_neighbours(figure, classifier, source, stored, index, labels)
  return len(index)


def find_neighbours(
  features: Float[np.ndarray, "n ..."], queries: Int[np.ndarray, " q"], count: int
) -> tuple[Int[np.ndarray, "q {count}"], Float[np.ndarray, "q {count}"]]:
  """Finds the rows with the highest cosine similarity to each query row.

  Args:
    features: the rows; they are read in parts, as they may not fit in memory.
    queries: indices of the query rows.
    count: neighbours per query, at most N - 1. A row is not its own neighbour.

  Returns:
    Indices of the neighbours, the most similar first, and similarities in [-1, 1].
  """

  def unit(rows: np.ndarray) -> np.ndarray:
    flat = np.asarray(rows).reshape(len(rows), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    units: np.ndarray = flat / np.maximum(norms, 1e-12)
    return units

  chosen = unit(features[queries])
  step = max(1, 2**24 // chosen.shape[1])
  parts = [
    chosen @ unit(features[i : i + step]).T for i in range(0, len(features), step)
  ]
  similarity = np.concatenate(parts, axis=1)
  similarity[np.arange(len(queries)), queries] = -np.inf
  nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
  return nearest, np.take_along_axis(similarity, nearest, axis=1)


def _draw_neighbours(
  path: str,
  classifier: Classifier,
  source: Source,
  features: Float[np.ndarray, "n ..."],
  index: list[int],
  labels: list[int],
) -> None:
  """Draws rows of an image and its neighbours; those of the same class are green."""
  rng = np.random.default_rng(0)
  queries = np.sort(rng.permutation(len(index))[:_QUERIES])
  count = min(_NEIGHBOURS, len(index) - 1)
  nearest, similarity = find_neighbours(features, queries, count)

  def picture(row: int, text: str, color: str = "") -> Picture:
    size = classifier.preprocessing, classifier.max_pixels, classifier.channels
    name = Path(source.name(index[row])).name
    if labels[row] >= 0:
      name = source.class_names[labels[row]]
    return Picture(read_image(source, index[row], *size), [name, text], color)

  pictures = []
  arrays = queries, nearest, similarity
  for query, others, values in zip(*(a.tolist() for a in arrays), strict=True):
    pictures.append(picture(query, "query", figure_style.TEXT))
    for row, value in zip(others, values, strict=True):
      is_same = labels[row] == labels[query] >= 0
      color = figure_style.RIGHT if is_same else ""
      pictures.append(picture(row, f"cosine {value:.2f}", color))
  draw_grid(path, pictures, 1 + count)
